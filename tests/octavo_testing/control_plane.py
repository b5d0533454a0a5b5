"""Builders of ModelDeployments, pods and what the operator observes; each has a working default for everything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from octavo_operator.api.types import ModelDeployment
from octavo_operator.api.validation import parse_model_deployment
from octavo_operator.desired import names
from octavo_operator.desired.job import render_model
from octavo_operator.desired.pod import PodSettings
from octavo_operator.desired.render import Desired, job_of, key_of, render
from octavo_operator.desired.revision import render_revision
from octavo_operator.desired.scaler import choose_scaler
from octavo_operator.observed import Node, Observed, Pod
from octavo_operator.rollout.policy import decide

POD_SETTINGS = PodSettings(
    image="registry.test/octavo:1", image_cpu="registry.test/octavo:1-cpu", image_rocm="registry.test/octavo:1-rocm"
)
UID = "11111111-2222-3333-4444-555555555555"
NOW = "2026-01-02T03:04:05Z"
AT = datetime.fromisoformat(NOW)


def a_manifest(name: str = "qwen", *, status: Mapping[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A ModelDeployment as the API server gives it; a spec field given as None is left out."""
    fields = {"model": "hf://Qwen/Qwen2.5-7B-Instruct", **spec}
    return {
        "apiVersion": "octavo.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": UID,
            "generation": 3,
            "resourceVersion": "10",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {key: value for key, value in fields.items() if value is not None},
        **({"status": dict(status)} if status is not None else {}),
    }


def a_resource(name: str = "qwen", **spec: Any) -> ModelDeployment:
    return parse_model_deployment(a_manifest(name, **spec))


def a_desired(resource: ModelDeployment | None = None, observed: Observed | None = None) -> Desired:
    """What should be there, given what is: as of a new resource where nothing is said."""
    resource = resource or a_resource()
    rendered = render_revision(resource, POD_SETTINGS)
    model = render_model(resource, POD_SETTINGS)
    observed = observed or Observed(resource=a_manifest())
    is_fetched = observed.is_fetched(job_of(model))
    decision = decide(resource, rendered, observed, now=AT, is_fetched=is_fetched)
    return render(
        resource,
        decision.fleets,
        counts=decision.counts,
        kept=decision.kept,
        rollout=decision.status,
        first=model,
        scaler=choose_scaler(resource, observed.scaling_apis),
    )


def a_pod(
    name: str = "qwen-abc-1",
    *,
    revision: str = "",
    ready: bool = False,
    terminating: bool = False,
    phase: str = "Running",
    server: Mapping[str, Any] | None = None,
    unschedulable: str = "",
    node: str = "node0",
) -> Pod:
    """A pod of qwen; `server` is its container's status, `unschedulable` the scheduler's complaint."""
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    if unschedulable:
        scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": unschedulable}
        conditions.append(scheduled)
    status: dict[str, Any] = {"phase": phase, "conditions": conditions, "podIP": "10.0.0.7"}
    if server is not None:
        status["containerStatuses"] = [{"name": "server", "image": "registry.test/octavo:1", **server}]
    limits = {"nvidia.com/gpu": "1"}
    return Pod(
        raw={
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": "default",
                "uid": f"uid-{name}",
                "resourceVersion": "5",
                "labels": names.revision_labels("qwen", revision),
                **({"deletionTimestamp": NOW} if terminating else {}),
            },
            "spec": {"nodeName": "" if unschedulable else node, "containers": [{"resources": {"limits": limits}}]},
            "status": status,
        }
    )


def a_download_pod(name: str = "qwen-fetch-1", **fields: Any) -> Pod:
    """A pod of qwen's download Job; fields as of `a_pod`, `server` the status of its container."""
    raw = dict(a_pod(name, **fields).raw)
    statuses = [{**status, "name": names.DOWNLOAD_CONTAINER} for status in raw["status"].get("containerStatuses", ())]
    return Pod(
        raw={
            **raw,
            "metadata": {**raw["metadata"], "labels": names.download_labels("qwen")},
            "status": {**raw["status"], "containerStatuses": statuses},
        }
    )


def fetched(desired: Desired, *, at: str = "2026-01-01T00:10:00Z") -> list[dict[str, Any]]:
    """The desired objects as they are once the Job has ended well."""
    done = {"conditions": [{"type": "Complete", "status": "True"}]}
    return [
        {
            **obj,
            "metadata": {**obj["metadata"], "creationTimestamp": at},
            **({"status": done} if obj["kind"] == "Job" else {}),
        }
        for obj in desired.objects
    ]


def running(**status: Any) -> dict[str, Any]:
    """Status of a container that runs."""
    return {"state": {"running": {"startedAt": NOW}}, **status}


def waiting(reason: str, message: str = "", **status: Any) -> dict[str, Any]:
    """Status of a container that the kubelet does not run now."""
    return {"state": {"waiting": {"reason": reason, "message": message}}, **status}


def ended(exit_code: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    """A `terminated` state."""
    return {"terminated": {"exitCode": exit_code, "reason": reason, "message": message}}


def termination_log(reason: str, message: str) -> str:
    return json.dumps({"reason": reason, "message": message})


def a_node(
    name: str = "node0",
    *,
    gpus: int = 0,
    cordoned: bool = False,
    tainted: bool = False,
    labels: Mapping[str, str] | None = None,
    offers: Mapping[str, str] | None = None,
) -> Node:
    """`offers` are extended resources beside the `gpus` of nvidia.com/gpu."""
    capacity = {"cpu": "8", **({"nvidia.com/gpu": str(gpus)} if gpus else {}), **(offers or {})}
    return Node(name=name, is_cordoned=cordoned, has_taints=tainted, capacity=capacity, labels=labels or {})


def a_deployment(revision: str, *, replicas: int = 1, conditions: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A Deployment of another revision of qwen than the wanted one."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": names.deployment_name("qwen", revision),
            "namespace": "default",
            "uid": f"uid-{revision}",
            "labels": names.revision_labels("qwen", revision),
        },
        "spec": {"replicas": replicas},
        "status": {"conditions": conditions or []},
    }


def an_observed(
    *objects: Mapping[str, Any], pods: tuple[Pod, ...] = (), resource: Mapping[str, Any] | None = None, **fields: Any
) -> Observed:
    """A snapshot of qwen with these objects and pods."""
    return Observed(
        resource=a_manifest() if resource is None else resource,
        objects={key_of(obj): obj for obj in objects},
        pods=pods,
        **fields,
    )


def observed_as(desired: Desired, **fields: Any) -> Observed:
    """A snapshot in which every desired object exists just as it was asked for."""
    return an_observed(*desired.objects, **fields)
