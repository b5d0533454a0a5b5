"""The whole operator as a process against a real API server, and small helpers to watch what it does."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from octavo_testing.apiserver import ADMIN_TOKEN, ApiServer

T = TypeVar("T")

OPERATOR_PATH = Path(__file__).parents[2] / "operator"
RESOURCES = "/apis/octavo.dev/v1alpha1/namespaces/{namespace}/modeldeployments"
COLLECTIONS = {
    "Deployment": "/apis/apps/v1/namespaces/{namespace}/deployments",
    "ControllerRevision": "/apis/apps/v1/namespaces/{namespace}/controllerrevisions",
    "Service": "/api/v1/namespaces/{namespace}/services",
    "ServiceAccount": "/api/v1/namespaces/{namespace}/serviceaccounts",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets",
    "HorizontalPodAutoscaler": "/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers",
    "ScaledObject": "/apis/keda.sh/v1alpha1/namespaces/{namespace}/scaledobjects",
    "PersistentVolumeClaim": "/api/v1/namespaces/{namespace}/persistentvolumeclaims",
    "Job": "/apis/batch/v1/namespaces/{namespace}/jobs",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
    "Pod": "/api/v1/namespaces/{namespace}/pods",
    "Event": "/api/v1/namespaces/{namespace}/events",
}
MERGE = "application/merge-patch+json"


class Namespace:
    """One namespace of the API server, in the words of a test."""

    def __init__(self, server: ApiServer, name: str) -> None:
        self.server = server
        self.name = name
        server.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})

    def create(self, name: str, **spec: Any) -> dict[str, Any]:
        body = {
            "apiVersion": "octavo.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": name},
            "spec": {"model": "hf://org/name", **spec},
        }
        answer = self.server.request("POST", self._path("ModelDeployment"), body)
        assert answer.status == 201, answer.message
        return answer.body

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        answer = self.server.request("GET", self._path(kind, name))
        return answer.body if answer.status == 200 else None

    def names(self, kind: str) -> set[str]:
        return {item["metadata"]["name"] for item in self.items(kind)}

    def items(self, kind: str) -> list[dict[str, Any]]:
        """All of a kind; none of a kind that this API server does not know, such as KEDA's before its CRDs are there."""
        answer = self.server.request("GET", self._path(kind))
        assert answer.status in (200, 404), answer.message
        items: list[dict[str, Any]] = answer.body["items"] if answer.status == 200 else []
        return items

    def patch(self, kind: str, name: str, body: dict[str, Any], *, subresource: str = "") -> dict[str, Any]:
        path = self._path(kind, name) + (f"/{subresource}" if subresource else "")
        answer = self.server.request("PATCH", path, body, content_type=MERGE)
        assert answer.status == 200, answer.message
        return answer.body

    def post(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.server.request("POST", self._path(kind), body)
        assert answer.status == 201, answer.message
        return answer.body

    def delete(self, kind: str, name: str) -> None:
        answer = self.server.request("DELETE", self._path(kind, name), {"gracePeriodSeconds": 0})
        assert answer.status in (200, 202), answer.message

    def clear(self) -> None:
        """Deletes all ModelDeployments."""
        assert self.server.request("DELETE", self._path("ModelDeployment")).status == 200

    def condition(self, name: str, kind: str = "Ready") -> dict[str, Any]:
        resource = self.get("ModelDeployment", name) or {}
        conditions = resource.get("status", {}).get("conditions", [])
        return next((each for each in conditions if each["type"] == kind), {})

    def deployment_of(self, name: str) -> dict[str, Any]:
        """The Deployment of the wanted revision, once it is there."""
        resource = until(lambda: self.get("ModelDeployment", name), lambda got: bool(got and _revision(got)))
        revision = _revision(resource or {})
        found = until(lambda: self.get("Deployment", f"{name}-{revision}"), lambda got: got is not None)
        assert found is not None
        return found

    def add_pod(self, deployment: dict[str, Any], name: str, status: dict[str, Any]) -> None:
        """A pod as the Deployment's controller and a kubelet would make it."""
        template = deployment["spec"]["template"]
        owner = {key: deployment[key] for key in ("apiVersion", "kind")} | {"controller": True}
        owner |= {key: deployment["metadata"][key] for key in ("name", "uid")}
        metadata = {"name": name, "labels": template["metadata"]["labels"], "ownerReferences": [owner]}
        self.post("Pod", {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
        self.set_pod_status(name, status)

    def set_pod_status(self, name: str, status: dict[str, Any]) -> None:
        self.patch("Pod", name, {"status": status}, subresource="status")

    def _path(self, kind: str, name: str = "") -> str:
        template = RESOURCES if kind == "ModelDeployment" else COLLECTIONS[kind]
        return template.format(namespace=self.name) + (f"/{name}" if name else "")


def start_operator(server: ApiServer, log: Path, *flags: str) -> subprocess.Popen[bytes]:
    """The caller ends it."""
    command = [sys.executable, "-m", "octavo_operator", "--kubeconfig", str(server.kubeconfig), "--port=0", *flags]
    env = {**os.environ, "PYTHONPATH": str(OPERATOR_PATH), "OCTAVO_LOG_LEVEL": "info"}
    with log.open("ab") as out:
        return subprocess.Popen(command, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL)


@contextlib.contextmanager
def running_operator(server: ApiServer, log: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """The operator until the block ends; it must then end by itself and cleanly after SIGTERM."""
    process = start_operator(server, log, *flags)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()[-3000:]
    finally:
        process.kill()
        process.wait()


def until(get: Callable[[], T], is_enough: Callable[[T], bool], *, within_s: float = 20.0, every_s: float = 0.05) -> T:
    """Asks again and again until it is enough; the last answer is in the failure."""
    deadline = time.monotonic() + within_s
    while True:
        got = get()
        if is_enough(got):
            return got
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s; last seen: {got}"
        time.sleep(every_s)


def count_writes(server: ApiServer) -> int:
    """Requests that wrote since the API server started, by its own metrics; leases, which live of writes, left out."""
    text = str(server.request("GET", "/metrics", token=ADMIN_TOKEN).body["message"])
    pattern = re.compile(r"^apiserver_request_total\{([^}]*)\} ([0-9.e+]+)$", re.MULTILINE)
    return sum(
        int(float(count))
        for labels, count in pattern.findall(text)
        if re.search(r'verb="(POST|PUT|PATCH|APPLY|DELETE)"', labels) and 'resource="leases"' not in labels
    )


def _revision(resource: dict[str, Any]) -> str:
    return str(resource.get("status", {}).get("rollout", {}).get("revision", ""))
