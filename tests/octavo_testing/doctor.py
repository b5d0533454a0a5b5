"""Clusters that `kubectl octavo doctor` judges: a healthy one, and the parts that make others of it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from octavo_cli.kubectl.checks import judge
from octavo_cli.kubectl.facts import Facts, Outcome, Right
from octavo_testing.kube_objects import a_condition, a_model

NOW = datetime.datetime(2026, 1, 1, 12, 5, tzinfo=datetime.UTC)
LIST_PODS = Right(who="the operator", group="", resource="pods", verb="list")


def a_release(
    component: str,
    *,
    ready: int = 1,
    version: str = "0.1.0",
    namespace: str = "octavo-system",
    args: Sequence[str] = ("--port=1",),
) -> dict[str, Any]:
    labels = {"app.kubernetes.io/version": version, "app.kubernetes.io/component": component}
    container = {"name": component, "args": list(args)}
    return {
        "metadata": {"name": f"octavo-{component}", "namespace": namespace, "labels": labels},
        "spec": {
            "replicas": 1,
            "template": {"spec": {"serviceAccountName": f"octavo-{component}", "containers": [container]}},
        },
        "status": {"readyReplicas": ready},
    }


def a_lease(*, renewed: str = "2026-01-01T12:04:58.000000Z") -> dict[str, Any]:
    spec = {"holderIdentity": "octavo-operator-x", "renewTime": renewed, "leaseDurationSeconds": 15}
    return {"metadata": {"name": "octavo-operator", "namespace": "octavo-system"}, "spec": spec}


def a_node(
    name: str = "n0", *, cordoned: bool = False, labels: dict[str, str] | None = None, **allocatable: str
) -> dict:
    offered = {key.replace("__", "/").replace("_", "."): value for key, value in allocatable.items()}
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"unschedulable": cordoned},
        "status": {"allocatable": {"cpu": "4", **offered}},
    }


def a_plugin(ready: int) -> dict[str, Any]:
    status = {"numberReady": ready, "desiredNumberScheduled": 2}
    return {"metadata": {"name": "nvidia-device-plugin-ds", "namespace": "gpus"}, "status": status}


def a_gpu_model(**gpu: Any) -> dict[str, Any]:
    ready = a_condition("Ready", "True", "AllReplicasReady", "1 of 1 replicas ready")
    return a_model("qwen", ready, spec={"resources": {"gpu": gpu}})


def a_quota(hard: str, used: str) -> dict[str, Any]:
    name = "requests.nvidia.com/gpu"
    return {"metadata": {"name": "q"}, "status": {"hard": {name: hard}, "used": {name: used}}}


L4, H200 = ({"nvidia.com/gpu.product": f"NVIDIA-{name}"} for name in ("L4", "H200"))
CLAIMS = [{"name": "gpu", "resourceClaimTemplateName": "two-large"}]


def a_gpu_pod(count: str = "1", **status: str) -> dict[str, Any]:
    container = {"resources": {"limits": {"nvidia.com/gpu": count}}}
    return {"metadata": {"name": "p"}, "spec": {"nodeName": "n0", "containers": [container]}, "status": status}


SERVICE = {
    "metadata": {"name": "v1beta2.custom.metrics.k8s.io"},
    "spec": {"service": {"namespace": "octavo-system", "name": "octavo-metrics-adapter"}},
    "status": {"conditions": [a_condition("Available", "True", "Passed")]},
}
BROKEN_SERVICE = {**SERVICE, "status": {"conditions": [a_condition("Available", "False", "x", "no route")]}}
HEALTHY = Facts(
    namespace="team",
    version={"major": "1", "minor": "36", "gitVersion": "v1.36.4"},
    crd={"metadata": {"annotations": {"octavo.dev/chart-version": "0.1.0"}}},
    is_served=True,
    operators=[a_release("operator")],
    gateways=[a_release("gateway")],
    leases=[a_lease()],
    nodes=[a_node(nvidia_com__gpu="8"), a_node("n1", nvidia_com__gpu="8")],
    pods=[a_gpu_pod("2"), a_gpu_pod("1", phase="Succeeded")],
    daemon_sets=[],
    metrics_service=SERVICE,
    metrics=["pods/octavo_kv_pressure_ratio"],
    quotas=[],
    models=[],
    rights={LIST_PODS: True},
)


def outcome(check: str, **facts: Any) -> Outcome:
    (found,) = [each for each in judge(replace(HEALTHY, **facts), NOW) if each.check == check]
    return found
