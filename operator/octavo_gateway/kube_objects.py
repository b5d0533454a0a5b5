"""ModelDeployments and pods as the API server gives them → the few facts that routing needs → a RoutingTable.

Pure. The objects themselves are dropped at once: a gateway that watches thousands of pods keeps a few strings of each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from .endpoints import Access, Audit, Model, Replica, RoutingTable, resolve_strategy, table_of
from .quota import Limits

MODEL_LABEL = "octavo.dev/modeldeployment"
REVISION_LABEL = "octavo.dev/revision"
POD_SELECTOR = "app.kubernetes.io/managed-by=octavo,app.kubernetes.io/component=server"
SERVER_CONTAINER = "server"
SERVER_PORT = 8000
SERVER_PORT_NAME = "http"

KubeObject = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    model: Model
    """Without replicas."""
    admitted: frozenset[str]
    """Revisions that may serve; empty means all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    model_key: str
    replica: Replica


def object_key(thing: KubeObject) -> str:
    metadata = thing["metadata"]
    return f"{metadata.get('namespace', '')}/{metadata['name']}"


def read_model(thing: KubeObject) -> ModelFacts:
    metadata, spec = thing["metadata"], thing.get("spec") or {}
    routing = spec.get("routing") or {}
    rollout = (thing.get("status") or {}).get("rollout") or {}
    is_at_zero = spec.get("replicas") == 0
    can_wake = bool(spec.get("scaling")) and not spec.get("suspend", False)
    model = Model(
        key=object_key(thing),
        served_names=tuple(spec.get("servedNames") or (metadata["name"],)),
        created_s=_unix_seconds(metadata.get("creationTimestamp", "")),
        uid=metadata.get("uid", ""),
        strategy=resolve_strategy(
            routing.get("strategy") or "Auto",
            prefix_caching=(spec.get("engine") or {}).get("prefixCaching", True),
        ),
        access=read_access(spec.get("access") or {}),
        service_url=f"http://{metadata['name']}.{metadata.get('namespace', '')}.svc:{SERVER_PORT}",
        max_held=routing.get("maxHeldRequests", 256),
        hold_timeout_s=duration_s(routing.get("holdTimeout") or "10m"),
        is_scaled_to_zero=is_at_zero,
        can_wake=can_wake,
        # Elsewhere each write of a status would make other facts of the same ones.
        resource_version=metadata.get("resourceVersion", "") if is_at_zero and can_wake else "",
    )
    return ModelFacts(model=model, admitted=frozenset(rollout.get("admitted") or ()))


def read_access(access: KubeObject) -> Access:
    return Access(
        keys_from=tuple(source["secretRef"]["name"] for source in access.get("keysFrom") or ()),
        audit=Audit(access.get("audit") or "Metadata"),
        limits=Limits(per_minute=access.get("tokensPerMinute", 0), per_day=access.get("tokensPerDay", 0)),
    )


def read_pod(thing: KubeObject) -> PodFacts | None:
    """None for a pod that has no address yet, has ended, or names no model."""
    metadata, status = thing["metadata"], thing.get("status") or {}
    labels = metadata.get("labels") or {}
    address, name = status.get("podIP"), labels.get(MODEL_LABEL)
    if not address or not name or status.get("phase") in ("Succeeded", "Failed"):
        return None
    host = f"[{address}]" if ":" in address else address
    replica = Replica(
        url=f"http://{host}:{_server_port(thing)}",
        pod=metadata["name"],
        ready=any(
            condition.get("type") == "Ready" and condition.get("status") == "True"
            for condition in status.get("conditions") or ()
        ),
        terminating="deletionTimestamp" in metadata,
        revision=labels.get(REVISION_LABEL, ""),
    )
    return PodFacts(model_key=f"{metadata.get('namespace', '')}/{name}", replica=replica)


def build_table(models: Iterable[ModelFacts], pods: Iterable[PodFacts], *, is_complete: bool) -> RoutingTable:
    by_model: dict[str, list[Replica]] = {}
    for pod in pods:
        by_model.setdefault(pod.model_key, []).append(pod.replica)
    return table_of(
        (_with_replicas(facts, by_model.get(facts.model.key, [])) for facts in models), is_complete=is_complete
    )


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def duration_s(text: str) -> float:
    """``1h30m`` → 5400.0; raises ValueError for anything that is not a duration."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration such as 90s or 1h30m")
    return sum(float(number) * _UNIT_S[unit] for number, unit in parts)


def _with_replicas(facts: ModelFacts, replicas: list[Replica]) -> Model:
    told = (replace(replica, admitted=not facts.admitted or replica.revision in facts.admitted) for replica in replicas)
    return replace(facts.model, replicas=tuple(sorted(told, key=lambda replica: replica.pod)))


def _server_port(pod: KubeObject) -> int:
    for container in (pod.get("spec") or {}).get("containers") or ():
        if container.get("name") == SERVER_CONTAINER:
            for port in container.get("ports") or ():
                if port.get("name") == SERVER_PORT_NAME:
                    return int(port["containerPort"])
    return SERVER_PORT


def _unix_seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp() if timestamp else 0.0
