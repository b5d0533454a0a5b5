"""Rollouts from beginning to end on a simulated cluster, by the real reconciler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from octavo_operator.errors import ClusterError
from octavo_operator.kube.kinds import Kind
from octavo_testing.control_plane import a_manifest
from octavo_testing.rollout_cluster import BROKEN, Cluster, a_cluster, check_kills, revision_of


def step(cluster: Cluster) -> None:
    """The operator acts and the controllers follow; no server becomes ready and none has drained yet."""
    cluster.reconcile()
    cluster.run_deployments()
    cluster.schedule()


def change(cluster: Cluster, *, to: int = 4) -> str:
    """Edits the spec; the revision before is returned."""
    before = revision_of(cluster)
    cluster.edit(engine={"maxNumSeqs": to})
    return before


def test_surge_serves_with_as_many_as_before_all_the_while() -> None:
    cluster = a_cluster(gpus=4, replicas=3, rollout={"strategy": "Surge"})
    old = change(cluster)

    step(cluster)
    new = revision_of(cluster)
    assert cluster.counts() == {old: 3, new: 1}
    assert cluster.rollout["admitted"] == [old]
    step(cluster)
    assert cluster.counts() == {old: 3, new: 1}
    while cluster.counts() != {new: 3}:
        cluster.start_servers(most=1)
        step(cluster)
        assert cluster.served() >= 3
        assert cluster.draining() <= 1
        cluster.finish_drains()

    assert cluster.rollout["admitted"] == [new]
    assert (cluster.condition("Ready")["status"], cluster.rollout["stable"]) == ("True", new)


def test_what_serves_scales_though_the_new_template_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = a_cluster(gpus=4, replicas=1, scaling={"minReplicas": 1, "maxReplicas": 4})
    old, apply = change(cluster), cluster.apply

    async def refuse(kind: Kind, manifest: Mapping[str, Any], *, force: bool) -> dict[str, Any]:
        if kind.name == "Deployment" and old not in manifest["metadata"]["name"]:
            raise ClusterError(422, "Invalid", "spec.template.spec.affinity: no")
        return await apply(kind, manifest, force=force)

    monkeypatch.setattr(cluster, "apply", refuse)
    cluster.reconcile()

    cluster.edit(replicas=3)
    cluster.reconcile()

    assert cluster.counts() == {old: 3}
    assert cluster.condition("Ready")["reason"] == "SpecInvalid"


def test_surge_waits_for_room_and_says_what_would_not() -> None:
    cluster = a_cluster(gpus=1, replicas=1, rollout={"strategy": "Surge"})
    old = change(cluster)

    step(cluster)
    cluster.settle()

    assert cluster.counts()[old] == 1 == cluster.served()
    assert cluster.condition("Ready")["reason"] == "InsufficientGPU"
    assert "Auto or HoldAndSwap would swap replicas without it" in cluster.condition("Ready")["message"]


def test_auto_swaps_on_one_gpu_after_no_room_was_found() -> None:
    cluster = a_cluster(gpus=1, replicas=1)
    old = change(cluster)

    step(cluster)
    new = revision_of(cluster)
    step(cluster)
    cluster.wait(19)
    step(cluster)
    assert (cluster.rollout["strategy"], cluster.counts()) == ("Surge", {old: 1, new: 1})
    assert cluster.reconcile().look_again_s == 1
    cluster.wait(1)
    step(cluster)
    assert (cluster.rollout["strategy"], cluster.counts()) == ("HoldAndSwap", {old: 1, new: 0})
    step(cluster)
    assert cluster.counts() == {old: 0, new: 0}
    assert cluster.draining() == 1
    step(cluster)
    assert cluster.counts() == {old: 0, new: 0}
    assert cluster.condition("Available")["reason"] == "HoldingRequests"
    cluster.finish_drains()
    step(cluster)
    assert cluster.counts()[new] == 1
    cluster.start_servers()
    cluster.settle()

    assert (cluster.counts(), cluster.served()) == ({new: 1}, 1)
    assert "heldSince" not in cluster.rollout


def test_auto_waits_for_a_node_that_is_on_its_way() -> None:
    cluster = a_cluster(gpus=1, replicas=1)
    old = change(cluster)
    cluster.node_comes = True

    step(cluster)
    cluster.wait(600)
    step(cluster)
    assert cluster.rollout["strategy"] == "Surge"
    cluster.gpus = 2
    step(cluster)
    cluster.start_servers()
    cluster.settle()

    assert old not in cluster.counts()
    assert cluster.rollout["strategy"] == "Surge"


def test_auto_does_not_take_a_pod_away_for_one_that_fits_nowhere() -> None:
    """A wrong node selector is not cured by an empty node."""
    cluster = a_cluster(gpus=1, replicas=1)
    old = change(cluster)
    step(cluster)
    (waiting,) = (pod for pod in cluster.pods if "nodeName" not in pod["spec"])
    waiting["status"]["conditions"][0]["message"] = "0/1 nodes: 1 node(s) didn't match Pod's node affinity/selector."

    for _ in range(5):
        cluster.wait(100)
        cluster.reconcile()

    assert cluster.rollout["strategy"] == "Surge"
    assert cluster.counts()[old] == 1


def quota(requested: int, used: int, limited: int) -> str:
    amounts = f"requested: pods=1,nvidia.com/gpu={requested}, used: pods=1,nvidia.com/gpu={used}"
    return f'pods "qwen-x" is forbidden: exceeded quota: team, {amounts}, limited: pods=9,nvidia.com/gpu={limited}'


@pytest.mark.parametrize(
    ("refusal", "is_room"),
    [
        ('admission webhook "images" denied the request: the image is not signed', False),
        ("pods is forbidden: failed quota: team: must specify limits.cpu for: server", False),
        (quota(requested=2, used=1, limited=1), False),
        (quota(requested=1, used=1, limited=1), True),
    ],
    ids=["admission", "no limits", "more than the quota has", "used up"],
)
def test_auto_takes_a_pod_away_for_one_that_is_refused_only_where_that_makes_room(refusal: str, is_room: bool) -> None:
    cluster = a_cluster(gpus=2, replicas=1)
    old = change(cluster)
    cluster.reconcile()
    new = cluster.objects["Deployment", f"qwen-{revision_of(cluster)}"]
    new["status"] = {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": refusal}]}

    for _ in range(5):
        cluster.wait(100)
        cluster.reconcile()

    assert (cluster.counts()[old], cluster.rollout["strategy"]) == ((0, "HoldAndSwap") if is_room else (1, "Surge"))
    assert is_room or "swapped" not in cluster.condition("Ready")["message"]


@pytest.mark.parametrize("strategy", ["HoldAndSwap", "Recreate", "Auto"])
def test_a_pod_that_its_dead_node_holds_for_ever_does_not_keep_others_from_starting(strategy: str) -> None:
    cluster = a_cluster(gpus=1, replicas=1, rollout={"strategy": strategy})
    old = change(cluster)
    for _ in range(8):
        step(cluster)
        cluster.wait(20)
    assert (cluster.counts()[old], cluster.draining(), cluster.served()) == (0, 1, 0)
    new = revision_of(cluster)
    cluster.nodes = 2

    for _ in range(4):
        step(cluster)
        cluster.start_servers()
        cluster.wait(60)

    assert (cluster.counts()[new], cluster.served(), cluster.draining()) == (1, 1, 1)


def test_hold_and_swap_replaces_one_at_a_time() -> None:
    cluster = a_cluster(gpus=3, replicas=3, rollout={"strategy": "HoldAndSwap"})
    old = change(cluster)

    seen = []
    for _ in range(40):
        step(cluster)
        pods = sum(cluster.counts().values()) + cluster.draining()
        assert pods <= 3
        assert cluster.served() >= 2
        seen.append(cluster.counts().get(old, 0))
        cluster.finish_drains()
        step(cluster)
        cluster.start_servers(most=1)

    assert list(dict.fromkeys(seen)) == [2, 1, 0]
    assert cluster.served() == 3


def test_recreate_never_runs_two_revisions_together() -> None:
    cluster = a_cluster(gpus=8, replicas=2, rollout={"strategy": "Recreate"})
    old = change(cluster)

    step(cluster)
    step(cluster)
    new = revision_of(cluster)
    assert cluster.counts() == {old: 0, new: 0}
    cluster.finish_drains()
    step(cluster)

    assert cluster.counts()[new] == 2


@pytest.mark.parametrize("strategy", ["Auto", "HoldAndSwap", "Recreate"])
def test_revision_that_never_serves_in_a_swap_goes_back_after_max_hold(strategy: str) -> None:
    cluster = a_cluster(gpus=1, replicas=1, rollout={"strategy": strategy, "maxHold": "2m"})
    old = change(cluster, to=BROKEN)

    cluster.settle()

    assert cluster.counts() == {old: 1}
    assert cluster.served() == 1
    assert (cluster.rollout["revision"], cluster.rollout["stable"]) == (old, old)
    ready = cluster.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "MaxHoldExceeded")
    assert "within maxHold, 120 s" in ready["message"]
    assert cluster.condition("Available")["status"] == "True"
    assert cluster.events[-1] == "MaxHoldExceeded"


def test_revision_that_was_rolled_back_is_tried_again_when_the_rollout_is_changed() -> None:
    cluster = a_cluster(gpus=1, replicas=1, rollout={"strategy": "HoldAndSwap", "maxHold": "2m"})
    old = change(cluster, to=BROKEN)
    cluster.settle()
    refused = cluster.rollout["refused"]["revision"]

    cluster.edit(rollout={"strategy": "HoldAndSwap", "maxHold": "3m"})
    step(cluster)

    assert revision_of(cluster) == refused != old
    assert "refused" not in cluster.rollout


def test_corrected_spec_after_a_roll_back_rolls_out() -> None:
    cluster = a_cluster(gpus=1, replicas=1, rollout={"strategy": "HoldAndSwap", "maxHold": "2m"})
    old = change(cluster, to=BROKEN)
    cluster.settle()

    change(cluster, to=8)
    cluster.settle()

    assert old not in cluster.counts()
    assert cluster.condition("Ready")["status"] == "True"
    assert "refused" not in cluster.rollout


def test_first_revision_that_never_serves_has_nothing_to_go_back_to() -> None:
    cluster = Cluster(gpus=1)
    cluster.edit(engine={"maxNumSeqs": BROKEN}, rollout={"strategy": "HoldAndSwap", "maxHold": "1m"})
    cluster.settle()
    first = revision_of(cluster)

    change(cluster, to=8)
    cluster.settle()

    assert first not in cluster.counts()
    assert cluster.served() == 1


def test_suspend_in_the_middle_of_a_rollout_stops_it_and_changes_no_pod() -> None:
    cluster = a_cluster(gpus=3, replicas=2)
    change(cluster)
    step(cluster)
    cluster.start_servers()
    cluster.edit(suspend=True)
    before = cluster.counts(), [pod["metadata"]["name"] for pod in cluster.pods], dict(cluster.rollout)

    cluster.settle()
    cluster.edit(replicas=5, engine={"maxNumSeqs": 9})
    cluster.settle()

    assert (cluster.counts(), [pod["metadata"]["name"] for pod in cluster.pods], cluster.rollout) == before
    assert cluster.condition("Progressing")["reason"] == "Suspended"
    cluster.gpus = 8
    cluster.edit(suspend=False)
    cluster.settle()
    assert cluster.served() == 5


def test_time_in_which_a_swap_is_suspended_is_not_held_against_it() -> None:
    """Nothing was tried meanwhile, so that nothing has failed."""
    cluster = a_cluster(gpus=1, replicas=1, rollout={"strategy": "HoldAndSwap", "maxHold": "5m"})
    old = change(cluster)
    for _ in range(3):
        step(cluster)
    assert (cluster.counts()[old], cluster.served()) == (0, 0)
    cluster.edit(suspend=True)
    cluster.settle()

    cluster.edit(suspend=False)
    cluster.settle(step_s=60)

    assert (cluster.counts(), cluster.served()) == ({revision_of(cluster): 1}, 1)
    assert old != revision_of(cluster)


def test_spec_that_goes_back_in_the_middle_gives_the_first_revision_again() -> None:
    cluster = a_cluster(gpus=1, replicas=1)
    old = revision_of(cluster)
    cluster.edit(engine={"maxNumSeqs": 4})
    step(cluster)
    assert revision_of(cluster) != old

    cluster.edit(engine={})
    step(cluster)
    step(cluster)

    assert cluster.counts() == {old: 1}
    assert cluster.served() == 1


def test_spec_that_changes_while_a_rollout_is_written_down_is_decided_on_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = a_cluster(gpus=2, replicas=1)
    change(cluster)
    patch = cluster.merge_patch

    async def edited_meanwhile(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        cluster.edit(replicas=2)
        return await patch(path, body)

    monkeypatch.setattr(cluster, "merge_patch", edited_meanwhile)
    with pytest.raises(ClusterError, match="decided anew"):
        cluster.reconcile()

    monkeypatch.undo()
    cluster.settle()
    assert cluster.served() == 2


def test_first_number_of_replicas_is_written_before_anything_is_made_or_said() -> None:
    """Two writes of one resource would be one more than what its creation may cost."""
    cluster = Cluster(gpus=2, manifest=a_manifest(scaling={"minReplicas": 2, "maxReplicas": 4}))

    cluster.reconcile()

    assert cluster.writes == ["patch scale replicas"]


def test_change_at_zero_replicas_costs_nothing() -> None:
    cluster = a_cluster(gpus=1, replicas=1)
    cluster.edit(replicas=0)
    cluster.settle()
    old = change(cluster)

    cluster.settle()
    cluster.edit(replicas=1)
    cluster.settle()

    assert old not in cluster.counts()
    assert cluster.served() == 1


SCENES: dict[str, tuple[int, int, dict[str, Any], int]] = {
    "surge": (4, 3, {}, 4),
    "auto swap": (1, 1, {}, 4),
    "swap of two": (2, 2, {"strategy": "HoldAndSwap"}, 4),
    "recreate": (2, 2, {"strategy": "Recreate"}, 4),
    "roll back": (1, 1, {"maxHold": "1m"}, BROKEN),
}


@pytest.mark.parametrize("scene", SCENES)
def test_operator_killed_after_its_nth_write_comes_to_the_same_end(scene: str) -> None:
    gpus, replicas, rollout, to = SCENES[scene]

    def changed() -> Cluster:
        cluster = a_cluster(gpus=gpus, replicas=replicas, rollout=rollout)
        change(cluster, to=to)
        return cluster

    check_kills(changed)


@pytest.mark.parametrize("spec", [{"replicas": 2}, {"scaling": {"minReplicas": 2, "maxReplicas": 4}}], ids=str)
def test_operator_killed_while_it_makes_a_new_resource_comes_to_the_same_end(spec: dict[str, Any]) -> None:
    check_kills(lambda: Cluster(gpus=2, manifest=a_manifest(**spec)))


def test_pod_that_drains_is_waited_for_before_replicas_are_swapped() -> None:
    """Its room is about to be free: more than `NO_ROOM_S` of draining is no want of room."""
    cluster = a_cluster(gpus=2, replicas=2)
    cluster.gpus = 3
    change(cluster)
    step(cluster)
    cluster.start_servers()
    step(cluster)
    assert cluster.draining() == 1
    cluster.wait(100)
    step(cluster)

    assert cluster.rollout["strategy"] == "Surge"
    cluster.finish_drains()
    cluster.settle()
    assert cluster.rollout["strategy"] == "Surge"
    assert cluster.served() == 2
