"""Rollouts of replicas of several GPUs: room is what one whole replica finds on one node, not a number of free GPUs."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.observed import Node
from octavo_operator.rollout.counts import Counts, Situation, hold_and_swap
from octavo_operator.rollout.fleet import Fleet, count_fleet
from octavo_testing.control_plane import AT, a_deployment, a_node, a_pod, an_observed
from octavo_testing.rollout_cluster import Cluster, a_cluster, check_kills, revision_of


def of_gpus(count: int) -> dict[str, Any]:
    return {"gpu": {"count": count}}


def a_cluster_of(count: int, **rest: Any) -> Cluster:
    return a_cluster(resources=of_gpus(count), **rest)


def step(cluster: Cluster, *, seconds: float = 0) -> None:
    """The operator acts and the controllers follow."""
    cluster.wait(seconds)
    cluster.reconcile()
    cluster.run_deployments()
    cluster.schedule()


def test_a_replica_surges_where_a_node_has_room_for_a_whole_one() -> None:
    cluster = a_cluster_of(2, gpus=4, replicas=1)
    cluster.edit(engine={"maxNumSeqs": 4})

    step(cluster)
    step(cluster)
    cluster.start_servers()
    cluster.settle()

    assert (cluster.served(), cluster.rollout["strategy"]) == (1, "Surge")


@pytest.mark.parametrize(
    ("gpus", "nodes", "replicas"), [(3, 1, 1), (3, 2, 2)], ids=["fewer free than a replica", "free, but on two nodes"]
)
def test_replicas_are_swapped_where_the_free_gpus_of_no_node_are_enough(gpus: int, nodes: int, replicas: int) -> None:
    cluster = a_cluster_of(2, gpus=gpus, nodes=nodes, replicas=replicas)
    old = revision_of(cluster)
    cluster.edit(engine={"maxNumSeqs": 4})
    step(cluster)
    step(cluster)
    message = cluster.condition("Ready")["message"]
    assert f"needs 2 nvidia.com/gpu, 0 of {nodes} GPU nodes have as many free ({nodes} with fewer free)" in message

    least = replicas
    for _ in range(20):
        step(cluster, seconds=21)
        least = min(least, cluster.served())
        cluster.finish_drains()
        cluster.start_servers(most=1)
    cluster.settle()

    assert (cluster.served(), cluster.rollout["strategy"]) == (replicas, "HoldAndSwap")
    assert old not in cluster.counts()
    assert least == replicas - 1


def test_a_replica_that_no_node_could_ever_hold_takes_nobodys_place() -> None:
    cluster = a_cluster_of(1, gpus=2, nodes=2, replicas=2)
    old = revision_of(cluster)
    cluster.edit(resources=of_gpus(4))

    for _ in range(10):
        step(cluster, seconds=100)
        cluster.finish_drains()
        cluster.start_servers()

    assert cluster.counts()[old] == 2 == cluster.served()
    assert cluster.rollout["strategy"] == "Surge"
    message = cluster.condition("Ready")["message"]
    assert "needs 4 nvidia.com/gpu, 0 of 2 GPU nodes have as many free (2 with fewer than 4 in all)" in message


def test_larger_replicas_take_the_room_of_as_many_as_they_need() -> None:
    """One that goes makes half the room that a new one needs, so that another must go; all the while some serve."""
    cluster = a_cluster_of(1, gpus=4, replicas=4)
    old, least = revision_of(cluster), 4
    cluster.edit(resources=of_gpus(2))

    for _ in range(30):
        step(cluster, seconds=10)
        least = min(least, cluster.served())
        cluster.finish_drains()
        cluster.start_servers()

    assert old not in cluster.counts()
    assert (cluster.served(), least) == (2, 1)
    assert cluster.condition("Ready")["message"].startswith("2 of 4 replicas ready; pod ")


def test_another_goes_only_after_the_new_one_has_found_no_room_for_a_while() -> None:
    """Its scheduler may just not have looked at the room that was made."""
    cluster = a_cluster_of(1, gpus=4, replicas=4, rollout={"strategy": "HoldAndSwap"})
    old = revision_of(cluster)
    cluster.edit(resources=of_gpus(2))
    step(cluster)
    cluster.finish_drains()
    step(cluster)

    counts = [(step(cluster, seconds=each), cluster.counts()[old])[1] for each in (1, 18, 3)]

    assert counts == [3, 3, 2]


@pytest.mark.parametrize(
    ("node", "wants"),
    [
        (a_node(gpus=2, labels={"disk": "fast"}), True),
        (a_node(gpus=1, labels={"disk": "fast"}), False),
        (a_node(gpus=2, labels={"disk": "slow"}), False),
        (a_node(gpus=2, labels={"disk": "fast"}, cordoned=True), False),
    ],
    ids=["large enough", "too small", "another kind", "cordoned"],
)
def test_room_is_wanted_of_nodes_that_could_give_it(node: Node, wants: bool) -> None:
    pod = a_pod(revision="new", unschedulable="0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
    pod.raw["spec"]["nodeSelector"] = {"disk": "fast"}
    pod.raw["spec"]["containers"] = [{"name": "server", "resources": {"limits": {"nvidia.com/gpu": "2"}}}]

    def fleet(nodes: tuple[Node, ...] | None) -> Fleet:
        return count_fleet(an_observed(a_deployment("new"), pods=(pod,), nodes=nodes), "new", now=AT)

    assert fleet((node,)).wants_room == wants
    assert fleet(None).wants_room


def test_room_is_made_by_one_at_a_time_though_the_operator_looks_again_before_anything_has_happened() -> None:
    target = Fleet(count=1, existing=1)

    def decide(**now: Any) -> Counts:
        fleets: dict[str, Any] = {"wanted": 4, "target": target, "is_admitted": True, "others_existing": 3, **now}
        return hold_and_swap(Situation(serving={"old": Fleet(count=3, existing=3, placed=3, ready=3)}, **fleets))

    assert decide() == Counts(target=1, others={"old": 3})
    assert decide(lacks_room=True) == Counts(target=1, others={"old": 2})
    # One has been told to go, and is still there.
    assert decide(lacks_room=True, others_existing=4) == Counts(target=0, others={"old": 3})


@pytest.mark.parametrize("change", [of_gpus(2), of_gpus(1), of_gpus(4)], ids=str)
def test_operator_killed_after_its_nth_write_comes_to_the_same_end(change: dict[str, Any]) -> None:
    def changed() -> Cluster:
        cluster = a_cluster_of(2, gpus=4, replicas=2)
        cluster.edit(resources=change, engine={"maxNumSeqs": 4})
        return cluster

    check_kills(changed)
