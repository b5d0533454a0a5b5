"""Objects of a cluster for the tests of `kubectl octavo`, and a cluster that is a dictionary of paths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from octavo_cli.kubectl.cluster import Json, Refused

NOW = "2026-01-01T12:00:00Z"
MODELS = "/apis/octavo.dev/v1alpha1/namespaces/team/modeldeployments"
LABELS = {
    "app.kubernetes.io/managed-by": "octavo",
    "app.kubernetes.io/component": "server",
    "octavo.dev/modeldeployment": "qwen",
}


class FakeCluster:
    """Answers GETs from `objects` (a path → an object, a list, a text, or an HTTP status) and keeps what was sent."""

    def __init__(self, objects: dict[str, Any], *, namespace: str = "team") -> None:
        self.objects = objects
        self.namespace = namespace
        self.kubectl_flags: list[str] = []
        self.sent: list[tuple[str, str, Any]] = []
        self.queries: list[dict[str, str]] = []
        self.answer: Callable[[str, str, Any], Json] = lambda method, path, body: {}

    def get(self, path: str, **query: str) -> Json:
        found = self._find(path, query)
        return {"items": found} if isinstance(found, list) else found

    def text(self, path: str, **query: str) -> str:
        return str(self._find(path, query))

    def lines(self, path: str, **query: str) -> Iterator[str]:
        yield from str(self._find(path, query)).splitlines()

    def send(self, method: str, path: str, body: Any, *, content_type: str = "application/json") -> Json:
        self.sent.append((method, path, body))
        return self.answer(method, path, body)

    def _find(self, path: str, query: dict[str, str]) -> Any:
        self.queries.append(query)
        found = self.objects.get(path, 404)
        if isinstance(found, int):
            raise Refused(found, f"GET {path}: {found}: refused")
        return found


def a_condition(kind: str, status: str, reason: str, message: str = "") -> Json:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": NOW}


def a_model(name: str = "qwen", *conditions: Json, spec: Json | None = None, **status: Any) -> Json:
    metadata = {"name": name, "namespace": "team", "generation": 2, "resourceVersion": "7", "creationTimestamp": NOW}
    return {
        "metadata": metadata,
        "spec": {"model": "hf://org/name", **(spec or {})},
        "status": {"observedGeneration": 2, "conditions": list(conditions), **status},
    }


def a_deployment(revision: str, *, replicas: int = 1, ready: int = 1) -> Json:
    labels = {**LABELS, "octavo.dev/revision": revision}
    return {
        "metadata": {"name": f"qwen-{revision}", "namespace": "team", "labels": labels},
        "spec": {"replicas": replicas},
        "status": {"readyReplicas": ready},
    }


def a_pod(
    name: str, revision: str = "r1", *, ready: bool = True, conditions: tuple[Json, ...] = (), **status: Any
) -> Json:
    labels = {**LABELS, "octavo.dev/revision": revision}
    conditions = (a_condition("Ready", str(ready), ""), *conditions)
    return {
        "metadata": {"name": name, "namespace": "team", "labels": labels, "creationTimestamp": NOW},
        "spec": {
            "nodeName": "node0",
            "containers": [{"name": "server", "ports": [{"name": "http", "containerPort": 8000}]}],
        },
        "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": list(conditions), **status},
    }


def a_kept_revision(revision: str, number: int, **spec: Any) -> Json:
    return {
        "metadata": {"name": f"qwen-{revision}", "labels": {**LABELS, "octavo.dev/revision": revision}},
        "revision": number,
        "data": {"spec": {"model": "hf://org/name", **spec}, "template": {}},
    }
