"""What the operator does about each difference, and in which order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from octavo_operator.api.types import ModelDeployment
from octavo_operator.desired.names import DELETION_COST
from octavo_operator.observed import Observed, Pod, ZeroWish
from octavo_operator.plan import Apply, Delete, MarkPod, Operation, Scale, WriteReplicas, make_plan
from octavo_testing.control_plane import (
    a_deployment,
    a_desired,
    a_pod,
    a_resource,
    an_observed,
    fetched,
    observed_as,
)


def test_everything_is_made_where_nothing_is() -> None:
    resource = a_resource()

    plan = make_plan(resource, a_desired(resource), an_observed())

    kinds = [operation.manifest["kind"] for operation in plan if isinstance(operation, Apply) and operation.is_new]
    assert kinds == ["ServiceAccount", "Service", "ControllerRevision", "Deployment"]


def test_nothing_is_done_where_all_is_as_it_should_be() -> None:
    resource = a_resource(replicas=2)
    desired = a_desired(resource)

    assert make_plan(resource, desired, observed_as(desired)) == ()


def test_hand_edit_is_restored() -> None:
    resource = a_resource()
    desired = a_desired(resource)
    edited = [_edited(manifest) if manifest["kind"] == "Service" else manifest for manifest in desired.objects]

    (operation,) = make_plan(resource, desired, an_observed(*edited))

    assert isinstance(operation, Apply)
    assert (operation.manifest["kind"], operation.is_new) == ("Service", False)


def test_object_that_is_no_longer_wanted_is_deleted_once() -> None:
    resource = a_resource()
    desired = a_desired(resource)
    budget = next(m for m in a_desired(a_resource(replicas=2)).objects if m["kind"] == "PodDisruptionBudget")
    leaving = {**budget, "metadata": {**budget["metadata"], "deletionTimestamp": "now"}}

    assert make_plan(resource, desired, an_observed(*desired.objects, budget)) == (
        Delete(key=("PodDisruptionBudget", "qwen")),
    )
    assert make_plan(resource, desired, an_observed(*desired.objects, leaving)) == ()


def test_suspended_resource_is_left_alone() -> None:
    resource = a_resource(suspend=True)

    assert make_plan(resource, a_desired(resource), an_observed()) == ()


def test_operator_writes_the_first_number_before_anything_else() -> None:
    resource = a_resource(scaling={"minReplicas": 2, "maxReplicas": 4})

    (operation,) = make_plan(resource, a_desired(resource), an_observed())

    assert operation == WriteReplicas(replicas=2, reason="first number of replicas")


def test_zero_is_left_where_the_least_is_more() -> None:
    resource = a_resource(scaling={"minReplicas": 2, "maxReplicas": 4}, replicas=0)

    (operation,) = make_plan(resource, a_desired(resource), an_observed())

    assert operation == WriteReplicas(replicas=2, reason="minReplicas is 2")


def test_idle_model_goes_to_zero_once() -> None:
    wish = ZeroWish(reason="no request for 600 s")
    scaling = {"minReplicas": 0, "maxReplicas": 4}
    busy, asleep = (a_resource(scaling=scaling, replicas=count) for count in (3, 0))

    (operation,) = make_plan(busy, a_desired(busy), an_observed(zero_wish=wish))
    desired = a_desired(asleep)

    assert operation == WriteReplicas(replicas=0, reason=wish.reason)
    assert make_plan(asleep, desired, observed_as(desired, zero_wish=wish)) == ()


def test_number_of_the_autoscaler_is_not_fought_over() -> None:
    resource = a_resource(scaling={"maxReplicas": 4}, replicas=3)
    desired = a_desired(resource)

    assert make_plan(resource, desired, observed_as(desired)) == ()
    assert desired.objects[3]["spec"]["replicas"] == 3


def test_old_revision_leaves_as_the_new_one_becomes_ready() -> None:
    resource = a_resource(replicas=2)
    desired = a_desired(resource)
    old = tuple(a_pod(f"old-{number}", revision="old", ready=True) for number in range(2))
    new = a_pod("new-1", revision=desired.revision, ready=True)
    deployments = (*desired.objects, a_deployment("old", replicas=2))

    before = plan_of(resource, an_observed(*deployments, pods=old))
    after = plan_of(resource, an_observed(*deployments, pods=(*old, new)))

    assert before == ()
    assert after == (Scale(deployment="qwen-old", replicas=1, revision="old"),)


def test_broken_pod_of_a_corrected_spec_gives_its_gpu_to_the_right_one() -> None:
    """Else the two would wait for each other for ever on a cluster with one GPU."""
    resource = a_resource(replicas=1)
    desired = a_desired(resource)
    waits = a_pod("new-1", revision=desired.revision, unschedulable="0/1 nodes: 1 Insufficient nvidia.com/gpu")
    broken = a_pod("old-1", revision="old")
    deployments = (*desired.objects, a_deployment("old"))

    with_room = plan_of(resource, an_observed(*deployments, pods=(broken,)))
    without = plan_of(resource, an_observed(*deployments, pods=(broken, waits)))

    assert with_room == ()
    assert without == (Scale(deployment="qwen-old", replicas=0, revision="old"),)


def test_revision_that_serves_keeps_its_gpu_from_one_that_waits() -> None:
    resource = a_resource(replicas=2)
    desired = a_desired(resource)
    waits = a_pod("new-1", revision=desired.revision, unschedulable="0/1 nodes: 1 Insufficient nvidia.com/gpu")
    serving, broken = a_pod("old-1", revision="old", ready=True), a_pod("old-2", revision="old")

    observed = an_observed(*desired.objects, a_deployment("old", replicas=2), pods=(serving, broken, waits))

    assert plan_of(resource, observed) == (Scale(deployment="qwen-old", replicas=1, revision="old"),)


def test_quota_that_a_broken_revision_uses_up_is_freed() -> None:
    resource = a_resource(replicas=1)
    desired = a_desired(resource)
    refusal = {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: gpus"}]}
    refused = [
        {**manifest, "status": refusal} if manifest["kind"] == "Deployment" else manifest
        for manifest in desired.objects
    ]

    observed = an_observed(*refused, a_deployment("old"), pods=(a_pod("old-1", revision="old"),))

    assert plan_of(resource, observed) == (Scale(deployment="qwen-old", replicas=0, revision="old"),)


def test_old_revision_goes_to_zero_when_the_new_one_is_whole() -> None:
    resource = a_resource(replicas=1)
    desired = a_desired(resource)
    pods = (a_pod("new-1", revision=desired.revision, ready=True), a_pod("old-1", revision="old", ready=True))

    plan = plan_of(resource, an_observed(*desired.objects, a_deployment("old"), pods=pods))

    assert plan == (Scale(deployment="qwen-old", replicas=0, revision="old"),)


def test_old_revision_shrinks_with_what_is_wanted() -> None:
    resource = a_resource(replicas=1)
    desired = a_desired(resource)

    plan = plan_of(resource, an_observed(*desired.objects, a_deployment("old", replicas=4)))

    assert plan == (Scale(deployment="qwen-old", replicas=1, revision="old"),)


def test_retired_revision_is_deleted_only_when_its_last_pod_has_gone() -> None:
    resource = a_resource()
    desired = a_desired(resource)
    new = a_pod("new-1", revision=desired.revision, ready=True)
    draining = a_pod("old-1", revision="old", terminating=True)
    retired = a_deployment("old", replicas=0)

    with_drain = plan_of(resource, an_observed(*desired.objects, retired, pods=(new, draining)))
    without = plan_of(resource, an_observed(*desired.objects, retired, pods=(new,)))

    assert with_drain == ()
    assert without == (Delete(key=("Deployment", "qwen-old")),)


def test_all_revisions_go_to_zero_with_the_resource() -> None:
    resource = a_resource(replicas=0)
    desired = a_desired(resource)

    plan = plan_of(resource, an_observed(*desired.objects, a_deployment("old", replicas=2)))

    assert plan == (Scale(deployment="qwen-old", replicas=0, revision="old"),)


def plan_of(resource: ModelDeployment, observed: Observed) -> tuple[Operation, ...]:
    """The plan of a resource whose revisions are as observed."""
    return make_plan(resource, a_desired(resource, observed), observed)


def _edited(manifest: Any) -> Any:
    return {**manifest, "spec": {**manifest["spec"], "selector": {"app": "mine"}}}


CACHED = {"cache": {"type": "PVC", "size": "1Gi"}}


def test_no_pod_is_made_before_the_model_is_on_its_claim() -> None:
    resource = a_resource(**CACHED)
    desired = a_desired(resource)
    at_work = [obj for obj in desired.objects if obj["kind"] != "Deployment"]

    first = make_plan(resource, desired, an_observed())
    then = make_plan(resource, desired, an_observed(*at_work))
    last = make_plan(resource, desired, an_observed(*(o for o in fetched(desired) if o["kind"] != "Deployment")))

    assert [operation.manifest["kind"] for operation in first if isinstance(operation, Apply)] == [
        "ServiceAccount",
        "Service",
        "PersistentVolumeClaim",
        "Job",
        "ControllerRevision",
    ]
    assert then == ()
    assert [operation.manifest["kind"] for operation in last if isinstance(operation, Apply)] == ["Deployment"]


def test_a_job_that_exists_is_never_written_again() -> None:
    """Its template cannot be changed; another image would otherwise be an error for ever."""
    resource = a_resource(**CACHED)
    desired = a_desired(resource)
    objects = [{**obj, "spec": {}} if obj["kind"] == "Job" else obj for obj in fetched(desired)]
    objects = [obj if obj["kind"] != "Job" else {**obj, "spec": {"template": {"spec": {}}}} for obj in objects]

    assert make_plan(resource, desired, an_observed(*objects)) == ()


def test_a_claim_that_is_newer_than_what_filled_it_is_filled_anew() -> None:
    resource = a_resource(**CACHED)
    desired = a_desired(resource)
    assert desired.job is not None
    later = {"creationTimestamp": "2026-01-02T00:00:00Z"}
    objects = [
        {**obj, "metadata": {**obj["metadata"], **later}} if obj["kind"] == "PersistentVolumeClaim" else obj
        for obj in fetched(desired)
    ]

    assert make_plan(resource, desired, an_observed(*objects)) == (Delete(key=desired.job),)


@pytest.mark.parametrize(
    ("has", "asked", "written"),
    [("9Gi", "1Gi", []), ("1Gi", "2Gi", ["2Gi"]), ("9Gi", "2Gi", ["2Gi"]), ("0.5Gi", "1Gi", ["1Gi"])],
    ids=["grown by others", "to grow", "smaller than it has grown to", "changed"],
)
def test_a_claim_that_others_let_grow_is_not_to_shrink(has: str, asked: str, written: list[str]) -> None:
    """No claim can, and the API server's refusal would stop everything else; of what a person asks for it is to be told."""
    cache = {**CACHED["cache"], "size": "1Gi"}
    before = a_desired(a_resource(cache=cache))
    resource = a_resource(cache={**cache, "size": asked})
    grown = [
        {**obj, "spec": {**obj["spec"], "resources": {"requests": {"storage": has}}}}
        if obj["kind"] == "PersistentVolumeClaim"
        else obj
        for obj in fetched(before)
    ]

    plan = make_plan(resource, a_desired(resource), an_observed(*grown))

    applied = [each.manifest for each in plan if isinstance(each, Apply)]
    claims = [each["spec"] for each in applied if each["kind"] == "PersistentVolumeClaim"]
    assert [each["resources"]["requests"]["storage"] for each in claims] == written


def test_the_claim_of_the_model_before_stays_as_long_as_its_pods() -> None:
    before = a_desired(a_resource(**CACHED))
    resource = a_resource(model="hf://org/other", **CACHED)
    desired = a_desired(resource)
    claim = next(obj for obj in before.objects if obj["kind"] == "PersistentVolumeClaim")
    key = ("PersistentVolumeClaim", claim["metadata"]["name"])
    serving = a_pod("old", revision="old", ready=True)

    old = a_deployment("old")
    volumes = [{"name": "model", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}]
    old["spec"]["template"] = {"spec": {"volumes": volumes}}

    during = make_plan(resource, desired, an_observed(*fetched(desired), claim, old, pods=(serving,)))
    after = make_plan(resource, desired, an_observed(*fetched(desired), claim))

    assert Delete(key=key) not in during
    assert after == (Delete(key=key),)


def three_pods(**annotations: str) -> tuple[Pod, ...]:
    """Of revision `abc`: two that serve, and one that does not."""
    pods = tuple(a_pod(f"qwen-{name}", revision="abc", ready=name != "c") for name in "abc")
    for pod in pods:
        if (cost := annotations.get(pod.name[-1])) is not None:
            pod.raw["metadata"]["annotations"] = {DELETION_COST: cost}
    return pods


@pytest.mark.parametrize(
    ("before", "after", "marks"),
    [(3, 2, [("qwen-a", 700), ("qwen-b", 30)]), (3, 0, []), (3, 3, []), (2, 3, [])],
    ids=["falls", "to zero", "stays", "rises"],
)
def test_pods_that_serve_are_marked_before_their_deployment_gives_some_up(
    before: int, after: int, marks: list[tuple[str, int]]
) -> None:
    kept = a_deployment("abc", replicas=before)
    observed = an_observed(kept, pods=three_pods(), in_flight={"qwen-a": 700, "qwen-b": 30, "qwen-c": 9})

    plan = make_plan(a_resource(), replace(a_desired(), counts={"abc": after}), observed)

    assert [(each.pod, each.tokens) for each in plan if isinstance(each, MarkPod)] == marks
    counts = [each for each in plan if isinstance(each, Scale)]
    scaled = Scale(deployment=kept["metadata"]["name"], replicas=after, revision="abc")
    assert counts == ([] if before == after else [scaled])
    if marks:
        assert plan.index(counts[0]) > max(plan.index(each) for each in plan if isinstance(each, MarkPod))


def test_a_pod_that_bears_its_mark_gets_none_and_one_that_tells_no_load_costs_nothing() -> None:
    observed = an_observed(a_deployment("abc", replicas=3), pods=three_pods(a="700", b="30"), in_flight={"qwen-a": 700})

    plan = make_plan(a_resource(), replace(a_desired(), counts={"abc": 2}), observed)

    assert [each for each in plan if isinstance(each, MarkPod)] == [MarkPod(pod="qwen-b", tokens=0)]


def test_a_mark_is_never_more_than_kubernetes_reads() -> None:
    observed = an_observed(a_deployment("abc", replicas=3), pods=three_pods(), in_flight={"qwen-a": 2**40})

    plan = make_plan(a_resource(), replace(a_desired(), counts={"abc": 2}), observed)

    assert MarkPod(pod="qwen-a", tokens=2**31 - 1) in plan
