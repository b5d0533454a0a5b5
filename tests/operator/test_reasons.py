"""Every reason that a person may meet, reached from what the cluster and the servers really say, with its sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from octavo_operator import errors
from octavo_operator.api import reasons
from octavo_operator.api.reader import Problem
from octavo_operator.autoscaling.decision import grant
from octavo_operator.autoscaling.schedule import Scheduled
from octavo_operator.desired.scaler import ScalingApis, choose_scaler
from octavo_operator.errors import ClusterError, SpecInvalidError
from octavo_operator.finding import Finding
from octavo_operator.observed import Pod, Rival, Startup
from octavo_operator.reconcile import explain
from octavo_operator.scaling_apis import NO_KEDA
from octavo_operator.status import make_failed_status, make_status
from octavo_testing.control_plane import (
    AT,
    NOW,
    a_deployment,
    a_desired,
    a_manifest,
    a_node,
    a_pod,
    a_resource,
    an_observed,
    ended,
    fetched,
    observed_as,
    running,
    termination_log,
    waiting,
)
from octavo_testing.rollout_cluster import BROKEN, Cluster, a_cluster

GB = 10**9


@dataclass(frozen=True, kw_only=True)
class Case:
    """A world in which condition `kind` has the reason, and words of its message."""

    words: str
    kind: str = "Ready"
    spec: dict[str, Any] = field(default_factory=dict)
    pod: dict[str, Any] | None = field(default_factory=dict)
    startup: Startup | None = None
    world: dict[str, Any] = field(default_factory=dict)
    deployment: list[dict[str, Any]] | None = None
    """Conditions of the Deployment."""
    failure: Finding | None = None
    scaler: dict[str, Any] | None = None
    """The condition of the HorizontalPodAutoscaler."""
    asked_for: int | None = None
    """Replicas that the Deployments were asked for until now."""
    is_fetched: bool = False
    """The Job has put the model onto its claim."""


def unschedulable(message: str) -> dict[str, Any]:
    return {"unschedulable": message}


def crashed(reason: str, message: str) -> dict[str, Any]:
    """A container that ended with last words and waits for its next start."""
    last = {"lastState": ended(1, termination_log(reason, message)), "restartCount": 3}
    return {"server": waiting("CrashLoopBackOff", "back-off 40s", **last)}


QUOTA = (
    'pods "qwen-abc-1" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: 4, limited: 4'
)
LOADING = {"server": running()}
SERVING = {"ready": True, "server": running()}

CASES: dict[str, Case] = {
    "InsufficientGPU": Case(
        words="0 of 2 replicas ready; pod qwen-abc-1 needs 1 nvidia.com/gpu, 0 of 3 GPU nodes have one free (2 full, 1 cordoned)",
        spec={"replicas": 2},
        pod=unschedulable("0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient nvidia.com/gpu."),
        world={"nodes": (a_node("a", gpus=8), a_node("b", gpus=8), a_node("c", gpus=8, cordoned=True))},
    ),
    "InsufficientResources": Case(
        words="finds no node with enough room: 0/1 nodes are available: 1 Insufficient memory",
        pod=unschedulable("0/1 nodes are available: 1 Insufficient memory."),
    ),
    "Unschedulable": Case(
        words="has no node: 0/1 nodes are available: 1 node(s) didn't have free ports",
        pod=unschedulable("0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."),
    ),
    "NodeSelectorMismatch": Case(
        words="finds no node that placement allows",
        pod=unschedulable("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."),
    ),
    "TaintNotTolerated": Case(
        words="taints that placement does not tolerate",
        pod=unschedulable("0/1 nodes are available: 1 node(s) had untolerated taint {gpu: true}."),
    ),
    "QuotaExceeded": Case(
        words="exceeded quota: gpus",
        pod=None,
        deployment=[{"type": "ReplicaFailure", "status": "True", "message": QUOTA}],
    ),
    "PodRefused": Case(
        words='the cluster refuses the pods: pods "qwen-abc-1" is forbidden: violates PodSecurity',
        pod=None,
        deployment=[
            {
                "type": "ReplicaFailure",
                "status": "True",
                "message": 'pods "qwen-abc-1" is forbidden: violates PodSecurity "restricted:latest": hostPort',
            }
        ],
    ),
    "VolumeUnbound": Case(
        words="waits for its volume",
        pod=unschedulable("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."),
    ),
    "ResourceClaimPending": Case(
        words="device class gpu.example.com does not exist",
        pod=unschedulable("0/1 nodes are available: request gpus: device class gpu.example.com does not exist."),
    ),
    "ImagePullFailed": Case(
        words="cannot pull image registry.test/octavo:1: Back-off pulling",
        pod={"server": waiting("ImagePullBackOff", 'Back-off pulling image "registry.test/octavo:1"')},
    ),
    "SecretNotFound": Case(
        words='secret "hf" not found',
        pod={"server": waiting("CreateContainerConfigError", 'secret "hf" not found')},
    ),
    "ModelNotFound": Case(words="no model (restart 3)", pod=crashed("ModelNotFound", "the hub has no model")),
    "ModelAccessDenied": Case(words="set HF_TOKEN", pod=crashed("ModelAccessDenied", "gated; set HF_TOKEN")),
    "ModelInvalid": Case(words="is damaged", pod=crashed("ModelInvalid", "a.safetensors is damaged")),
    "ChecksumMismatch": Case(words="not sha256:0", pod=crashed("ChecksumMismatch", "is sha256:1, not sha256:0")),
    "UnsupportedArchitecture": Case(
        words="MambaForCausalLM", pod=crashed("UnsupportedArchitecture", "MambaForCausalLM is not served")
    ),
    "GPUOutOfMemory": Case(words="needs 15.2 GB", pod=crashed("GPUOutOfMemory", "needs 15.2 GB, 11.0 GB are free")),
    "KVCacheTooSmall": Case(words="lower maxModelLen", pod=crashed("KVCacheTooSmall", "lower maxModelLen")),
    "Downloading": Case(
        words="downloads the model, 3.1 of 14.9 GB, 42 s left on node node0",
        pod=LOADING,
        startup=Startup(
            stage="downloading", done_bytes=3_100_000_000, total_bytes=14_900_000_000, bytes_per_second=281_000_000
        ),
    ),
    "DownloadStalled": Case(
        words="gets nothing for 75 s, 3.1 of 14.9 GB on node node0; check the network",
        pod=LOADING,
        startup=Startup(stage="downloading", done_bytes=3_100_000_000, total_bytes=14_900_000_000, idle_s=75.0),
    ),
    "LoadingWeights": Case(
        words="loads the weights, 3.0 of 15.0 GB",
        pod=LOADING,
        startup=Startup(stage="loading_weights", done_bytes=3 * GB, total_bytes=15 * GB),
    ),
    "WarmingUp": Case(words="warms up", pod=LOADING, startup=Startup(stage="warming_up")),
    "HostOutOfMemory": Case(
        words="raise resources.memory",
        pod={"server": {"state": ended(137, reason="OOMKilled"), "restartCount": 0}},
    ),
    "EngineCrashed": Case(words="exit code 139 (SIGSEGV)", pod={"server": {"state": ended(139), "restartCount": 0}}),
    "ProbeFailed": Case(words="readiness probe has not passed", pod=LOADING, startup=Startup(stage="ready")),
    "Draining": Case(
        words="no replica takes requests; 1 finish what runs",
        kind="Available",
        spec={"replicas": 0},
        pod={"terminating": True, "server": running()},
    ),
    "ScaledToZero": Case(
        words="the next request through the gateway wakes one",
        spec={"scaling": {"minReplicas": 0, "maxReplicas": 2}, "replicas": 0},
        pod=None,
    ),
    "Suspended": Case(words="suspend is true", kind="Progressing", spec={"suspend": True}),
    "MetricsUnavailable": Case(
        words="unable to get metric",
        kind="ScalingActive",
        spec={"scaling": {"maxReplicas": 2}, "replicas": 1},
        pod=SERVING,
        scaler={"type": "ScalingActive", "status": "False", "message": "unable to get metric octavo_kv_pressure_ratio"},
    ),
    "ScalingBlocked": Case(
        words="5 replicas wanted, 2 asked for; the rest waits: pod qwen-abc-1 needs 1 nvidia.com/gpu, 0 of 3 GPU nodes have",
        kind="ScalingActive",
        spec={"scaling": {"maxReplicas": 8}, "replicas": 5},
        pod=unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
        world={"nodes": (a_node("a", gpus=8), a_node("b", gpus=8), a_node("c", gpus=8))},
        scaler={"type": "ScalingActive", "status": "True", "message": "the HPA was able to compute"},
        asked_for=2,
    ),
    "ServedNameConflict": Case(
        words="'qwen' is held by the older other/qwen; default/qwen always routes here",
        world={"rivals": (Rival(served_name="qwen", namespace="other", name="qwen"),)},
    ),
    "KeysUnreadable": Case(words="cannot be read", world={"keys_trouble": "Secret default/team cannot be read"}),
    "ScalerUnavailable": Case(
        kind="ScalingActive",
        words="no API keda.sh: install it",
        spec={"scaling": {"maxReplicas": 2, "backend": "KEDA"}, "replicas": 1},
        world={"scaling_apis": ScalingApis(keda_trouble=NO_KEDA)},
    ),
    "SpecInvalid": Case(
        words="spec.model: is required",
        failure=explain(SpecInvalidError((Problem("spec.model", "is required"),))),
    ),
    "NameTaken": Case(
        words="belongs to", failure=explain(errors.NameTakenError("Service qwen exists and belongs to another"))
    ),
    "AllReplicasReady": Case(words="1 of 1 replicas ready", pod=SERVING),
    "SomeReplicasReady": Case(words="1 replica takes requests", kind="Available", pod=SERVING),
    "RolledOut": Case(words="runs with 1 replicas", kind="Progressing", pod=SERVING),
    "AllScheduled": Case(words="1 pod has a node", kind="Scheduled", pod=SERVING),
    "Fetched": Case(
        words="has fetched and checked the model",
        kind="ModelCached",
        spec={"cache": {"type": "PVC", "size": "1Gi"}},
        is_fetched=True,
    ),
    "ScalerReady": Case(
        words="the HPA was able to compute",
        kind="ScalingActive",
        spec={"scaling": {"maxReplicas": 2}},
        pod=SERVING,
        scaler={"type": "ScalingActive", "status": "True", "message": "the HPA was able to compute"},
    ),
    "ScalerStarting": Case(
        words="has not looked yet", kind="ScalingActive", spec={"scaling": {"maxReplicas": 2}}, pod=SERVING
    ),
    "Creating": Case(words="0 of 1 replicas ready; the pods are being made", pod=None),
    "Starting": Case(words="pod qwen-abc-1 starts on node node0", pod=LOADING),
    "ClusterError": Case(words="timed out", failure=explain(ClusterError(504, "Timeout", "the API server timed out"))),
}


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (ClusterError(422, "Invalid", 'services "a" is invalid: spec.x'), "SpecInvalid", "spec.x"),
        (
            ClusterError(
                422, "Invalid", "deployments.apps is forbidden: ValidatingAdmissionPolicy 'p' denied request: no"
            ),
            "ClusterError",
            "denied request: no",
        ),
        (
            ClusterError(400, "Bad", 'admission webhook "p" denied the request: no'),
            "ClusterError",
            "denied the request",
        ),
        (ClusterError(500, "", "etcdserver: request is too large"), "SpecInvalid", "make spec.podTemplate smaller"),
        (
            ClusterError(413, "RequestEntityTooLarge", "limit is 3145728"),
            "SpecInvalid",
            "make spec.podTemplate smaller",
        ),
        (
            ClusterError(403, "Forbidden", "exceeded quota: q, requested: services=1"),
            "QuotaExceeded",
            "services=1; raise",
        ),
    ],
)
def test_a_refusal_is_the_specs_fault_only_where_an_edit_of_it_is_the_cure(
    error: ClusterError, reason: str, words: str
) -> None:
    """What a policy says may change by itself, so that it is asked again; an invalid spec is not."""
    found = explain(error)

    assert (found.reason, words in found.sentence) == (reason, True)


def conditions_of(case: Case) -> list[dict[str, Any]]:
    if case.failure is not None:
        return make_failed_status(an_observed(), case.failure, now=NOW)["conditions"]  # type: ignore[no-any-return]
    resource = a_resource(**case.spec)
    desired = a_desired(resource)
    pods: tuple[Pod, ...] = () if case.pod is None else (a_pod(revision=desired.revision, **case.pod),)
    startups = {pod.name: case.startup for pod in pods if case.startup is not None}
    observed = observed_as(desired, pods=pods, startups=startups, **case.world)
    objects = dict(observed.objects)
    if case.is_fetched:
        objects = dict(an_observed(*fetched(desired)).objects)
    if case.deployment is not None:
        made = a_deployment(desired.revision, conditions=case.deployment)
        objects["Deployment", made["metadata"]["name"]] = made
    if case.scaler is not None:
        hpa = objects["HorizontalPodAutoscaler", "qwen"]
        objects["HorizontalPodAutoscaler", "qwen"] = {**hpa, "status": {"conditions": [case.scaler]}}
    status = None if case.asked_for is None else {"scaling": {"desired": case.asked_for}}
    observed = an_observed(
        *objects.values(), pods=pods, startups=startups, resource=a_manifest(status=status, **case.spec), **case.world
    )
    granted = grant(Scheduled(resource=resource), observed, desired.scaler, now=AT)
    desired = replace(desired, scaling=granted.status, scaler=choose_scaler(resource, observed.scaling_apis))
    return make_status(granted.resource, desired, observed, gateway_url="", now=NOW)["conditions"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("reason", "case"), CASES.items(), ids=CASES.keys())
def test_a_state_of_the_world_has_its_reason_and_says_what_to_do(reason: str, case: Case) -> None:
    told = {condition["type"]: condition for condition in conditions_of(case)}

    assert told[case.kind]["reason"] == reason
    assert case.words in told[case.kind]["message"]


WINDOW = {"policy": "Window", "cron": "0 2 * * *", "duration": "1h"}


def rolling(rounds: int, *, to: int = 4, **rollout: Any) -> Cluster:
    """One replica on one GPU whose spec changes at noon, `rounds` looks of the operator later."""
    cluster = a_cluster(gpus=1, replicas=1, rollout=rollout)
    cluster.now = cluster.now.replace(hour=12)
    cluster.edit(engine={"maxNumSeqs": to})
    for _ in range(rounds):
        cluster.reconcile()
        cluster.run_deployments()
        cluster.schedule()
        cluster.finish_drains()
    return cluster


def failing_its_gate() -> Cluster:
    cluster = rolling(0, strategy="HoldAndSwap", gate={"prompts": [{"prompt": "2 + 2?", "expect": "4"}]})
    cluster.bad_answer = "prompt 1 of 1: the answer does not contain '4'"
    cluster.settle()
    return cluster


def never_ready() -> Cluster:
    cluster = rolling(0, to=BROKEN, strategy="HoldAndSwap", maxHold="2m")
    cluster.settle()
    return cluster


OF_ROLLOUTS: dict[str, tuple[str, Callable[[], Cluster], str]] = {
    "RollingOut": ("Progressing", lambda: rolling(1, strategy="Surge"), " replaces "),
    "RolloutPending": ("Progressing", lambda: rolling(1, when=WINDOW), " waits: "),
    "HoldingRequests": ("Available", lambda: rolling(4, strategy="HoldAndSwap"), "the gateway holds requests: "),
    "RolloutGateFailed": ("Ready", failing_its_gate, "did not pass the gate: prompt 1 of 1"),
    "MaxHoldExceeded": ("Ready", never_ready, "within maxHold, 120 s"),
}


@pytest.mark.parametrize(("reason", "world"), OF_ROLLOUTS.items(), ids=OF_ROLLOUTS.keys())
def test_a_rollout_has_its_reason_and_says_what_it_waits_for(
    reason: str, world: tuple[str, Callable[[], Cluster], str]
) -> None:
    kind, make, words = world

    told = make().condition(kind)

    assert told["reason"] == reason
    assert words in told["message"]


def test_every_reason_is_reached_from_what_the_cluster_and_the_servers_say() -> None:
    """A new reason without a world in which it is told is refused here."""
    known = {value for name, value in vars(reasons).items() if name.isupper() and isinstance(value, str)}

    assert known == {*CASES, *OF_ROLLOUTS}
