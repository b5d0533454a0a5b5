"""More replicas are asked for only when those that were asked for are there; what waits, and for what, is in the status."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from octavo_operator.api.scaling_status import MAX_DECISIONS, ScalingStatus
from octavo_operator.autoscaling.decision import grant
from octavo_operator.autoscaling.guard import find_blocker
from octavo_operator.autoscaling.schedule import Scheduled
from octavo_operator.desired.scaler import Scaler
from octavo_operator.observed import Observed, Startup
from octavo_testing.control_plane import (
    AT,
    NOW,
    a_deployment,
    a_manifest,
    a_node,
    a_pod,
    a_resource,
    an_observed,
    ended,
    running,
    termination_log,
    waiting,
)
from octavo_testing.rollout_cluster import BROKEN, Cluster, OperatorDiedError, a_cluster

SCALED = {"scaling": {"minReplicas": 1, "maxReplicas": 8}}


def scaling_of(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster.manifest["status"]["scaling"]
    return found


def step(cluster: Cluster) -> int:
    """The operator, then Deployments and scheduler; replicas that are asked for."""
    cluster.reconcile()
    cluster.run_deployments()
    cluster.schedule()
    return sum(cluster.counts().values())


def test_a_whole_step_is_taken_and_the_next_waits_until_it_is_there() -> None:
    cluster = a_cluster(gpus=8, replicas=1, **SCALED)
    cluster.edit(replicas=3)
    assert step(cluster) == 3

    cluster.edit(replicas=6)
    assert step(cluster) == 3
    assert scaling_of(cluster)["desired"] == 3
    blocked = scaling_of(cluster)["decisions"][0]
    assert (blocked["from"], blocked["to"]) == (3, 6)
    assert blocked["blockedBy"].startswith("pod qwen-")

    cluster.start_servers(most=1)
    assert step(cluster) == 3
    cluster.start_servers()
    assert step(cluster) == 6
    newest, waited, first = scaling_of(cluster)["decisions"]
    assert newest | {"time": "", "reason": ""} == {"time": "", "from": 3, "to": 6, "reason": ""}
    assert (waited["to"], waited["blockedBy"][:4], first["to"]) == (6, "pod ", 3)


def test_pods_that_are_not_made_yet_count_as_on_their_way() -> None:
    cluster = a_cluster(gpus=8, replicas=1, **SCALED)
    cluster.edit(replicas=3)
    cluster.reconcile()

    cluster.edit(replicas=8)
    cluster.reconcile()

    assert sum(cluster.counts().values()) == 3
    assert scaling_of(cluster)["decisions"][0]["blockedBy"] == "2 pods are being made"


def test_without_room_nothing_more_is_asked_for_and_the_status_names_the_pod() -> None:
    cluster = a_cluster(gpus=2, replicas=1, **SCALED)
    cluster.edit(replicas=3)
    step(cluster)
    cluster.start_servers()
    cluster.edit(replicas=5)

    assert step(cluster) == 3
    assert "needs 1 nvidia.com/gpu" in scaling_of(cluster)["decisions"][0]["blockedBy"]
    assert cluster.ready() == 2


def test_what_nobody_wants_any_more_was_no_decision() -> None:
    cluster = a_cluster(gpus=2, replicas=1, **SCALED)
    cluster.edit(replicas=3)
    step(cluster)
    cluster.edit(replicas=5)
    step(cluster)

    cluster.edit(replicas=3)
    step(cluster)

    assert [each["to"] for each in scaling_of(cluster)["decisions"]] == [3]


def test_fewer_are_granted_at_once() -> None:
    cluster = a_cluster(gpus=2, replicas=1, **SCALED)
    cluster.edit(replicas=3)
    step(cluster)
    cluster.edit(replicas=2)

    assert step(cluster) == 2
    assert scaling_of(cluster)["decisions"][0]["from"] == 3


def test_the_replica_with_the_fewest_tokens_goes_and_marking_is_not_repeated() -> None:
    cluster = a_cluster(gpus=4, replicas=1, **SCALED)
    cluster.edit(replicas=4)
    step(cluster)
    cluster.start_servers()
    step(cluster)
    names = [pod["metadata"]["name"] for pod in cluster.pods]
    cluster.in_flight = dict(zip(names, (500, 3, 900, 40), strict=True))
    cluster.writes.clear()
    cluster.edit(replicas=2)

    step(cluster)

    left = [pod["metadata"]["name"] for pod in cluster.pods if "deletionTimestamp" not in pod["metadata"]]
    assert left == [names[0], names[2]]
    assert [each for each in cluster.writes if each.startswith("mark")] == [f"mark {name}" for name in names]
    cluster.in_flight = dict.fromkeys(names, 1)
    cluster.writes.clear()
    step(cluster)
    assert not [each for each in cluster.writes if each.startswith("mark")]


def test_the_least_is_a_persons_word_and_does_not_wait() -> None:
    cluster = a_cluster(gpus=2, replicas=1, **SCALED)
    cluster.edit(replicas=3)
    step(cluster)
    cluster.edit(replicas=7, scaling={"minReplicas": 5, "maxReplicas": 8})

    assert step(cluster) == 5
    assert [(each["from"], each["to"]) for each in scaling_of(cluster)["decisions"]] == [(5, 7), (3, 5), (1, 3)]


def test_more_than_the_most_is_never_asked_for() -> None:
    """`kubectl scale` may write any number, and an HPA corrects it only with its next look."""
    cluster = a_cluster(gpus=16, replicas=1, scaling={"minReplicas": 1, "maxReplicas": 4})

    cluster.edit(replicas=50)

    assert step(cluster) == 4
    assert scaling_of(cluster)["desired"] == 4


def test_a_fixed_number_and_a_suspended_one_do_not_wait() -> None:
    cluster = a_cluster(gpus=1, replicas=1)
    cluster.edit(replicas=2)
    step(cluster)
    cluster.edit(replicas=4)
    assert step(cluster) == 4
    assert scaling_of(cluster) == {"desired": 4}

    observed = an_observed(resource=a_manifest(status={"scaling": {"desired": 1}}))
    resting = a_resource(replicas=3, suspend=True, **SCALED)
    assert grant(Scheduled(resource=resting), observed, Scaler(), now=AT).status == ScalingStatus(desired=3)


def test_while_nothing_changes_nothing_is_written() -> None:
    cluster = a_cluster(gpus=2, replicas=1, **SCALED)
    cluster.edit(replicas=3)
    step(cluster)
    cluster.edit(replicas=5)
    step(cluster)
    step(cluster)
    cluster.writes.clear()

    cluster.wait(60)
    step(cluster)

    assert cluster.writes == []


@pytest.mark.parametrize("writes", range(1, 9))
def test_an_operator_that_dies_at_any_write_does_not_change_the_outcome(writes: int) -> None:
    cluster = a_cluster(gpus=8, replicas=1, **SCALED)
    cluster.edit(replicas=3)
    cluster.writes_left = writes
    asked = []
    for number in range(12):
        if number == 2:
            cluster.edit(replicas=6)
        try:
            asked.append(step(cluster))
        except OperatorDiedError:
            cluster.writes_left = None
        cluster.run_deployments()
        cluster.schedule()
        if number == 6:
            cluster.start_servers()

    assert asked == sorted(asked), "replicas that load were taken back"
    assert asked[-1] == 6
    assert [each["to"] for each in scaling_of(cluster)["decisions"] if not each.get("blockedBy")] == [6, 3]


STARTED = {"state": {"running": {"startedAt": "2026-01-02T03:00:00Z"}}}
ROOM = {"unschedulable": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}


def a_world(pod: dict[str, Any], **fields: Any) -> Observed:
    made = a_deployment("abc", replicas=2)
    ready = a_pod("qwen-abc-0", revision="abc", ready=True)
    return an_observed(made, pods=(ready, a_pod(revision="abc", **pod)), **fields)


@pytest.mark.parametrize(
    ("pod", "fields", "words"),
    [
        (ROOM, {"nodes": (a_node("a", gpus=8), a_node("b", gpus=8), a_node("c", gpus=8))}, "0 of 3 GPU nodes have one"),
        ({"server": running()}, {"startups": {"qwen-abc-1": Startup(stage="warming_up")}}, "qwen-abc-1 warms up"),
        (
            {"server": running()},
            {"startups": {"qwen-abc-1": Startup(stage="downloading", done_bytes=1, total_bytes=9, idle_s=99.0)}},
            "qwen-abc-1 downloads the model on node node0",
        ),
        ({"server": waiting("ImagePullBackOff", "no such image")}, {}, "cannot pull image"),
        ({"server": waiting("CrashLoopBackOff", lastState=ended(1, termination_log("GPUOutOfMemory", "x")))}, {}, ""),
        ({"server": waiting("CrashLoopBackOff", lastState=ended(139))}, {}, ""),
        ({"ready": True}, {}, ""),
        ({"terminating": True, "server": running()}, {}, "1 pod is being made"),
    ],
    ids=["no room", "loads", "downloads", "no image", "ended with a reason", "crashed", "ready", "leaves"],
)
def test_what_is_on_its_way_blocks_and_what_has_failed_does_not(
    pod: dict[str, Any], fields: dict[str, Any], words: str
) -> None:
    said = find_blocker(a_resource(**SCALED), a_world(pod, **fields), now=AT)

    assert (words in said) if words else said == ""


def test_the_clusters_refusal_blocks() -> None:
    quota = [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: gpus"}]
    observed = an_observed(a_deployment("abc", replicas=2, conditions=quota), pods=(a_pod(revision="abc", ready=True),))

    assert "exceeded quota: gpus" in find_blocker(a_resource(**SCALED), observed, now=AT)


@pytest.mark.parametrize(("turned", "blocks"), [("2026-01-02T02:59:59Z", True), ("2026-01-02T03:10:00Z", False)])
def test_a_replica_that_was_ready_and_hangs_or_lost_its_node_does_not_block(turned: str, blocks: bool) -> None:
    observed = a_world({"server": STARTED})
    fallen = observed.pods[1]
    fallen.raw["status"]["conditions"][0]["lastTransitionTime"] = turned

    assert bool(find_blocker(a_resource(**SCALED), observed, now=AT)) == blocks


@pytest.mark.parametrize(
    ("others_ready", "seconds", "blocks"), [(True, 299, True), (True, 300, False), (False, 3000, True)]
)
@pytest.mark.parametrize("why", ["ImagePullBackOff", "CreateContainerError"])
def test_where_others_serve_a_node_that_cannot_make_a_replica_does_not_block_for_ever(
    why: str, others_ready: bool, seconds: int, blocks: bool
) -> None:
    observed = a_world({"server": waiting(why, "no space left on device")})
    observed.pods[0].raw["status"]["conditions"][0]["status"] = "True" if others_ready else "False"
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": NOW}
    observed.pods[1].raw["status"]["conditions"].append(scheduled)

    said = find_blocker(a_resource(**SCALED), observed, now=AT + timedelta(seconds=seconds))

    assert ("no space left on device" in said) is blocks


def test_a_revision_that_is_about_to_shrink_does_not_make_up_for_a_pod_that_another_lacks() -> None:
    leaves = [a_pod(f"qwen-old-{number}", revision="old", ready=True) for number in range(2)]
    observed = an_observed(a_deployment("old", replicas=1), a_deployment("new", replicas=1), pods=tuple(leaves))

    assert find_blocker(a_resource(**SCALED), observed, now=AT) == "1 pod is being made"


def test_a_replica_without_a_node_blocks_as_long_as_it_has_none() -> None:
    """The next one would be just like it."""
    unplaced = a_world(
        {"unschedulable": "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."}
    )

    assert find_blocker(a_resource(**SCALED), unplaced, now=AT + timedelta(days=1))


STUCK = [
    ("Surge", {}),
    ("HoldAndSwap", {}),
    ("Surge", {"placement": {"nodeSelector": {"product": "none-such"}}}),
]


@pytest.mark.parametrize(("strategy", "change"), STUCK, ids=["never ready", "never ready in a swap", "never placed"])
def test_a_new_revision_that_never_starts_does_not_keep_the_serving_one_from_growing(
    strategy: str, change: dict[str, Any]
) -> None:
    cluster = a_cluster(gpus=16, replicas=2, **SCALED, rollout={"strategy": strategy})
    [serving] = cluster.counts()
    cluster.edit(engine={"maxNumSeqs": BROKEN}, **change)
    for _ in range(6):
        step(cluster)
        cluster.finish_drains()
    before = cluster.counts()[serving]

    cluster.edit(replicas=4)
    step(cluster)
    cluster.edit(replicas=6)
    step(cluster)
    assert "blockedBy" in scaling_of(cluster)["decisions"][0], "those of the serving revision still load"
    for _ in range(3):
        cluster.start_servers()
        step(cluster)

    assert before + 4 == cluster.counts()[serving] == cluster.ready(serving)
    assert cluster.ready() == cluster.served() == cluster.ready(serving)
    newest = scaling_of(cluster)["decisions"][0]
    assert (newest["from"], newest["to"], newest.get("blockedBy")) == (4, 6, None)


@pytest.mark.parametrize(
    ("before", "spec", "pressure", "reason"),
    [
        (1, {"replicas": 3}, 2.0, "the HorizontalPodAutoscaler asks for 3 at pressure 2.00 of 0.8"),
        (2, {"replicas": 3}, None, "the HorizontalPodAutoscaler asks for 3"),
        (0, {"replicas": 1}, None, "a request came while there was no replica"),
        (1, {"replicas": 2, "scaling": {"minReplicas": 2, "maxReplicas": 4}}, 0.1, "minReplicas is 2"),
        (6, {"replicas": 4, "scaling": {"minReplicas": 2, "maxReplicas": 4}}, 0.1, "maxReplicas is 4"),
        (2, {"replicas": 50, "scaling": {"minReplicas": 2, "maxReplicas": 4}}, 0.1, "maxReplicas is 4"),
        (
            1,
            {"replicas": 0, "scaling": {"minReplicas": 0, "maxReplicas": 4, "idleAfter": "90s"}},
            None,
            "no request for 90 s, which is its idleAfter",
        ),
        (1, {"replicas": 0}, None, "replicas was set to 0"),
    ],
)
def test_a_decision_says_who_asks(before: int, spec: dict[str, Any], pressure: float | None, reason: str) -> None:
    observed = an_observed(resource=a_manifest(status={"scaling": {"desired": before}}), pressure=pressure)

    granted = grant(Scheduled(resource=a_resource(**{**SCALED, **spec})), observed, Scaler(), now=AT)

    assert [each.reason for each in granted.status.decisions] == [reason]
    assert granted.status.as_json()["decisions"][0]["time"] == NOW


def test_decisions_are_few_newest_first_and_what_cannot_be_read_is_left_out() -> None:
    status = ScalingStatus(desired=0)
    for replicas in range(1, 15):
        status = status.moved(replicas, "why", at=AT)

    again = ScalingStatus.read({"scaling": status.as_json()})

    assert [each.after for each in again.decisions] == list(range(14, 14 - MAX_DECISIONS, -1))
    assert again == status
    assert ScalingStatus.read({"scaling": {"desired": "x", "decisions": [{"time": "then"}, 5]}}) == ScalingStatus()
