"""Conditions: the state of the world in one word and one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.api import reasons
from octavo_operator.conditions import Condition, make_conditions, make_failed_conditions, merge_conditions
from octavo_operator.desired.scaler import ScalingApis
from octavo_operator.finding import Finding
from octavo_operator.observed import Observed, Rival, Startup
from octavo_testing.control_plane import (
    NOW,
    a_deployment,
    a_desired,
    a_download_pod,
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


def conditions(observed: Observed, **spec: Any) -> dict[str, Condition]:
    resource = a_resource(**spec)
    return {
        condition.kind: condition for condition in make_conditions(resource, a_desired(resource, observed), observed)
    }


def pods(revision: str, *, ready: int, loading: int = 0) -> tuple[Any, ...]:
    serving = tuple(a_pod(f"r{i}", revision=revision, ready=True) for i in range(ready))
    return (*serving, *(a_pod(f"l{i}", revision=revision, server=running()) for i in range(loading)))


def test_all_replicas_ready() -> None:
    desired = a_desired(a_resource(replicas=2))

    found = conditions(observed_as(desired, pods=pods(desired.revision, ready=2)), replicas=2)

    assert (found["Ready"].status, found["Ready"].reason) == (True, reasons.ALL_READY)
    assert found["Ready"].message == "2 of 2 replicas ready"
    assert found["Available"].status is True
    assert (found["Progressing"].status, found["Progressing"].reason) == (False, reasons.ROLLED_OUT)
    assert found["Scheduled"].status is True
    assert "ScalingActive" not in found


def test_a_model_whose_keys_cannot_be_read_serves_nobody_and_says_what_to_do() -> None:
    desired = a_desired(a_resource(replicas=1))
    observed = observed_as(desired, pods=pods(desired.revision, ready=1), keys_trouble="run: kubectl …")

    found = conditions(observed, replicas=1)

    assert (found["Ready"].status, found["Ready"].reason) == (False, reasons.KEYS_UNREADABLE)
    assert found["Ready"].message == "run: kubectl …"
    assert found["Available"].status is True


def test_one_is_told_as_one() -> None:
    desired = a_desired(a_resource(replicas=2))

    found = conditions(observed_as(desired, pods=pods(desired.revision, ready=1)), replicas=2)

    assert found["Available"].message == "1 replica takes requests"
    assert found["Scheduled"].message == "1 pod has a node"


def test_ready_tells_what_the_missing_replica_does() -> None:
    desired = a_desired(a_resource(replicas=2))
    observed = observed_as(
        desired,
        pods=pods(desired.revision, ready=1, loading=1),
        startups={"l0": Startup(stage="loading_weights")},
    )

    found = conditions(observed, replicas=2)

    assert (found["Ready"].status, found["Ready"].reason) == (False, reasons.LOADING_WEIGHTS)
    assert found["Ready"].message.startswith("1 of 2 replicas ready; pod l0 loads the weights")
    assert (found["Available"].status, found["Progressing"].status) == (True, True)


def test_nothing_is_there_yet() -> None:
    found = conditions(an_observed())

    assert found["Ready"].reason == found["Available"].reason == found["Progressing"].reason == reasons.CREATING


def test_draining_pods_are_told() -> None:
    desired = a_desired()
    leaving = a_pod("x", terminating=True)

    serving = conditions(observed_as(desired, pods=(*pods(desired.revision, ready=1), leaving)))
    alone = conditions(observed_as(desired, pods=(leaving,)))

    assert serving["Ready"].message == "1 of 1 replicas ready; 1 drain"
    assert (alone["Available"].status, alone["Available"].reason) == (False, reasons.DRAINING)


def test_unschedulable_pod_turns_scheduled() -> None:
    desired = a_desired()
    stuck = a_pod("x", revision=desired.revision, unschedulable="0/1 nodes: 1 Insufficient nvidia.com/gpu")

    found = conditions(observed_as(desired, pods=(stuck,)))

    assert (found["Scheduled"].status, found["Scheduled"].reason) == (False, reasons.INSUFFICIENT_GPU)
    assert found["Ready"].reason == reasons.INSUFFICIENT_GPU
    assert found["Available"].reason == reasons.STARTING


def test_rollout_names_both_revisions_and_who_still_serves() -> None:
    desired = a_desired()
    observed = an_observed(
        *desired.objects, a_deployment("old"), pods=(*pods("old", ready=1), *pods(desired.revision, ready=0, loading=1))
    )

    found = conditions(observed)

    assert (found["Progressing"].status, found["Progressing"].reason) == (True, reasons.ROLLING_OUT)
    assert found["Progressing"].message == (
        f"revision {desired.revision} replaces old by Surge: a replica of the new revision comes up beside those that "
        "serve; pod l0 starts on node node0"
    )
    assert found["Ready"].message.endswith("; 1 of the revision before still serve")


def test_rollout_that_waits_for_the_room_of_the_serving_revision_says_the_way_out() -> None:
    desired = a_desired()
    stuck = a_pod("x", revision=desired.revision, unschedulable="0/1 nodes: 1 Insufficient nvidia.com/gpu")
    observed = an_observed(*desired.objects, a_deployment("old"), pods=(*pods("old", ready=1), stuck))

    found = conditions(observed)

    assert found["Ready"].reason == reasons.INSUFFICIENT_GPU
    assert found["Ready"].message.endswith("still serve; if no room comes, replicas are swapped one by one")
    by_surge = conditions(observed, rollout={"strategy": "Surge"})
    assert by_surge["Ready"].message.endswith("Auto or HoldAndSwap would swap replicas without it")


def test_stuck_rollout_says_why_in_both_conditions() -> None:
    desired = a_desired()
    crashed = waiting("CrashLoopBackOff", lastState=ended(1, termination_log("ModelNotFound", "no such model")))
    new = a_pod("new", revision=desired.revision, server=crashed)
    observed = an_observed(*desired.objects, a_deployment("old"), pods=(*pods("old", ready=1), new))

    found = conditions(observed)

    assert (found["Ready"].status, found["Ready"].reason) == (False, reasons.MODEL_NOT_FOUND)
    assert found["Ready"].message == (
        "0 of 1 replicas ready; pod new: no such model; 1 of the revision before still serve"
    )
    assert found["Progressing"].message.endswith("those that serve; pod new: no such model")
    assert found["Available"].status is True


def test_failure_of_a_spec_that_was_corrected_is_no_longer_told() -> None:
    desired = a_desired()
    crashed = waiting("CrashLoopBackOff", lastState=ended(1, termination_log("ModelNotFound", "no such model")))
    old = a_pod("old", revision="old", server=crashed)
    observed = an_observed(
        *desired.objects, a_deployment("old"), pods=(old, *pods(desired.revision, ready=0, loading=1))
    )

    found = conditions(observed)

    assert found["Ready"].reason == reasons.STARTING
    assert "no such model" not in found["Ready"].message + found["Progressing"].message


def test_refusal_of_pods_is_told() -> None:
    desired = a_desired()
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: gpus"}

    found = conditions(an_observed(a_deployment(desired.revision, conditions=[failure])))

    assert found["Ready"].reason == reasons.QUOTA_EXCEEDED


def test_zero_by_scaling_is_ready_because_a_request_wakes_it() -> None:
    found = conditions(an_observed(), scaling={"minReplicas": 0, "maxReplicas": 2}, replicas=0)

    assert (found["Ready"].status, found["Ready"].reason) == (True, reasons.SCALED_TO_ZERO)
    assert (found["Available"].status, found["Available"].reason) == (False, reasons.SCALED_TO_ZERO)
    assert (found["ScalingActive"].status, found["ScalingActive"].reason) == (False, reasons.SCALED_TO_ZERO)


def test_zero_by_hand_is_not_ready() -> None:
    found = conditions(an_observed(), replicas=0)

    assert (found["Ready"].status, found["Ready"].reason) == (False, reasons.SCALED_TO_ZERO)


def test_younger_claimant_of_a_name_is_told_who_holds_it() -> None:
    rivals = (Rival(served_name="qwen", namespace="team", name="old"),)

    found = conditions(an_observed(rivals=rivals))

    assert (found["Ready"].status, found["Ready"].reason) == (False, reasons.SERVED_NAME_CONFLICT)
    assert found["Ready"].message == "'qwen' is held by the older team/old; default/qwen always routes here"


def test_suspended_resource_says_so() -> None:
    found = conditions(an_observed(), suspend=True)

    assert (found["Ready"].status, found["Ready"].reason) == (False, reasons.SUSPENDED)
    assert found["Ready"].message == "0 of 1 replicas ready; nothing is changed while suspend is true"
    assert (found["Progressing"].status, found["Progressing"].reason) == (False, reasons.SUSPENDED)


@pytest.mark.parametrize(
    ("hpa_condition", "ready", "status", "reason", "words"),
    [
        (None, 1, None, reasons.SCALER_STARTING, "has not looked yet"),
        ({"status": "True", "message": "fine"}, 1, True, reasons.SCALER_READY, "fine"),
        ({"status": "False", "message": "no metrics"}, 1, False, reasons.METRICS_UNAVAILABLE, "no metrics"),
        ({"status": "False", "message": "no metrics"}, 0, False, reasons.METRICS_UNAVAILABLE, "no replica is ready"),
    ],
)
def test_scaling_active_follows_the_autoscaler(
    hpa_condition: dict[str, str] | None, ready: int, status: bool | None, reason: str, words: str
) -> None:
    spec = {"scaling": {"maxReplicas": 2}, "replicas": 1}
    desired = a_desired(a_resource(**spec))
    told = [{"type": "AbleToScale", "status": "True"}]
    if hpa_condition is not None:
        told.append({"type": "ScalingActive", **hpa_condition})
    scaled = [
        {**manifest, "status": {"conditions": told}} if manifest["kind"] == "HorizontalPodAutoscaler" else manifest
        for manifest in desired.objects
    ]

    found = conditions(an_observed(*scaled, pods=pods(desired.revision, ready=ready)), **spec)["ScalingActive"]

    assert (found.status, found.reason) == (status, reason)
    assert words in found.message


@pytest.mark.parametrize(("status", "is_told"), [("False", True), (None, True), ("True", False)])
def test_trouble_of_our_own_adapter_is_told_where_the_autoscaler_sees_nothing(
    status: str | None, is_told: bool
) -> None:
    spec = {"scaling": {"maxReplicas": 2}, "replicas": 1}
    desired = a_desired(a_resource(**spec))
    told = [] if status is None else [{"type": "ScalingActive", "status": status, "message": "no metrics"}]
    scaled = [
        {**manifest, "status": {"conditions": told}} if manifest["kind"] == "HorizontalPodAutoscaler" else manifest
        for manifest in desired.objects
    ]
    observed = an_observed(
        *scaled,
        pods=pods(desired.revision, ready=1),
        scaling_apis=ScalingApis(adapter_trouble="certificate: Secret sys/x is gone"),
    )

    found = conditions(observed, **spec)["ScalingActive"]

    assert ("the operator's metrics adapter: certificate: Secret sys/x is gone" in found.message) == is_told


def test_failure_keeps_what_is_available() -> None:
    failure = Finding(reason=reasons.NAME_TAKEN, sentence="Service qwen is somebody else's")

    found = {each.kind: each for each in make_failed_conditions(an_observed(pods=pods("old", ready=1)), failure)}

    assert (found["Ready"].status, found["Ready"].reason) == (False, reasons.NAME_TAKEN)
    assert found["Available"].status is True
    assert found["Progressing"].message == failure.sentence


def test_transition_time_moves_only_with_the_status() -> None:
    old = [
        {"type": "Ready", "status": "True", "lastTransitionTime": "then"},
        {"type": "Available", "status": "True", "lastTransitionTime": "then"},
    ]
    new = (
        Condition(kind="Ready", status=True, reason="B", message="b"),
        Condition(kind="Available", status=False, reason="B", message="b"),
        Condition(kind="Scheduled", status=None, reason="B", message="b"),
    )

    merged = merge_conditions(old, new, generation=4, now=NOW)

    assert [(each["status"], each["lastTransitionTime"]) for each in merged] == [
        ("True", "then"),
        ("False", NOW),
        ("Unknown", NOW),
    ]
    assert {each["observedGeneration"] for each in merged} == {4}


CACHED = {"cache": {"type": "PVC", "size": "1Gi"}}


def test_while_a_job_fetches_the_model_its_progress_is_the_reason() -> None:
    desired = a_desired(a_resource(**CACHED))
    at_work = [obj for obj in desired.objects if obj["kind"] != "Deployment"]
    pod = a_download_pod(server=running(), ready=True)
    told = Startup(stage="downloading", done_bytes=3 * 10**9, total_bytes=15 * 10**9, bytes_per_second=10**9)

    made = conditions(an_observed(*at_work), **CACHED)
    evicted = a_download_pod("evicted", phase="Failed", server=waiting("CreateContainerError", "the node is gone"))
    found = conditions(an_observed(*at_work, downloads=(evicted, pod), startups={pod.name: told}), **CACHED)

    assert (made["ModelCached"].status, made["ModelCached"].reason) == (False, reasons.CREATING)
    for kind in ("ModelCached", "Ready"):
        assert (found[kind].status, found[kind].reason) == (False, reasons.DOWNLOADING)
        assert "pod qwen-fetch-1 downloads the model, 3.0 of 15.0 GB, 12 s left" in found[kind].message


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        ({"server": waiting("CreateContainerConfigError", 'secret "s" not found')}, reasons.SECRET_NOT_FOUND, '"s"'),
        (
            {
                "server": waiting(
                    "CrashLoopBackOff",
                    lastState=ended(1, termination_log("ModelAccessDenied", "set AWS_ACCESS_KEY_ID")),
                    restartCount=2,
                )
            },
            reasons.MODEL_ACCESS_DENIED,
            "set AWS_ACCESS_KEY_ID (restart 2)",
        ),
        (
            {"unschedulable": "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."},
            reasons.VOLUME_UNBOUND,
            "waits for its volume",
        ),
    ],
    ids=["Secret", "access", "volume"],
)
def test_a_download_that_cannot_go_on_says_why(pod: dict[str, Any], reason: str, words: str) -> None:
    desired = a_desired(a_resource(**CACHED))
    at_work = [obj for obj in desired.objects if obj["kind"] != "Deployment"]

    found = conditions(an_observed(*at_work, downloads=(a_download_pod(**pod),)), **CACHED)

    for kind in ("ModelCached", "Ready"):
        assert found[kind].reason == reason
        assert words in found[kind].message
    assert found["Scheduled"].status is (reason != reasons.VOLUME_UNBOUND)


def test_another_claim_than_the_one_that_was_filled_holds_nothing() -> None:
    desired = a_desired(a_resource(**CACHED))
    newer = {"creationTimestamp": "2026-01-02T00:00:00Z"}
    objects = [
        {**obj, "metadata": {**obj["metadata"], **newer}} if obj["kind"] == "PersistentVolumeClaim" else obj
        for obj in fetched(desired)
    ]

    assert conditions(an_observed(*objects), **CACHED)["ModelCached"].status is False


def test_a_model_on_its_claim_is_told() -> None:
    desired = a_desired(a_resource(**CACHED))
    ended_pod = a_download_pod(phase="Succeeded")

    found = conditions(
        an_observed(*fetched(desired), pods=pods(desired.revision, ready=1), downloads=(ended_pod,)), **CACHED
    )

    assert (found["ModelCached"].status, found["ModelCached"].reason) == (True, reasons.FETCHED)
    assert found["Ready"].status is True
    assert "ModelCached" not in conditions(observed_as(a_desired()))
