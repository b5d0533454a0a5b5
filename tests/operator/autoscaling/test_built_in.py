"""The operator as the autoscaler: what it writes and when, over time, and that noise makes it do nothing."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from octavo_operator.desired.scaler import ScalingApis
from octavo_testing.rollout_cluster import KEY, Cluster, a_cluster

NOTHING = ScalingApis(has_custom_metrics=False, keda_trouble="no KEDA")


def a_scaled_cluster(*, replicas: int = 1, gpus: int = 16, **scaling: Any) -> Cluster:
    """In a cluster with neither metrics nor KEDA, so that Auto is BuiltIn; as many servers as are placed become ready."""
    bounds = {"minReplicas": 1, "maxReplicas": 8, **scaling}
    cluster = Cluster(gpus=gpus, scaling_apis=NOTHING)
    cluster.edit(replicas=replicas, scaling=bounds)
    cluster.settle()
    cluster.writes.clear()
    return cluster


def run(cluster: Cluster, seconds: int, load: Callable[[], float], *, every_s: int = 5) -> Iterator[int]:
    """The whole load, in pressures of one replica, is shared by those that are ready; replicas that are asked for."""
    for _ in range(0, seconds, every_s):
        whole = load()
        cluster.pressures = lambda _, whole=whole: whole / max(1, cluster.ready())  # type: ignore[misc]  # bound now
        cluster.reconcile()
        cluster.reconcile()
        cluster.run_deployments()
        cluster.schedule()
        cluster.start_servers()
        cluster.finish_drains()
        cluster.wait(every_s)
        yield cluster.wanted


def test_four_times_the_load_asks_for_four_times_the_replicas_in_one_decision() -> None:
    cluster = a_scaled_cluster()

    counts = list(run(cluster, 30, lambda: 3.2))

    assert counts[0] == 4, "in one step"
    assert counts == [4] * len(counts)
    assert cluster.ready() == 4
    assert ("HorizontalPodAutoscaler", "qwen") not in cluster.objects
    [decision] = cluster.manifest["status"]["scaling"]["decisions"]
    assert (decision["from"], decision["to"]) == (1, 4)
    assert decision["reason"] == "the operator asks for 4 at pressure 3.20 of 0.8"
    active = cluster.condition("ScalingActive")
    assert (active["status"], active["reason"]) == ("True", "ScalerReady")


def test_what_is_not_there_yet_holds_the_next_step_back() -> None:
    cluster = a_scaled_cluster(gpus=2)
    list(run(cluster, 30, lambda: 2.4))
    list(run(cluster, 30, lambda: 4.8))

    assert cluster.wanted == 6
    assert sum(cluster.counts().values()) == 3
    blocked = cluster.manifest["status"]["scaling"]["decisions"][0]
    assert "needs 1 nvidia.com/gpu" in blocked["blockedBy"]


def test_replicas_go_one_by_one_after_the_window() -> None:
    cluster = a_scaled_cluster()
    list(run(cluster, 30, lambda: 3.2))

    counts = list(run(cluster, 900, lambda: 0.4))

    assert counts[:55] == [4] * 55, "for 300 seconds since the last time that four were wanted"
    assert [counts.index(number) * 5 for number in (3, 2, 1)] == pytest.approx([285, 405, 525], abs=20)
    assert counts[-1] == 1


@pytest.mark.parametrize("seed", range(4))
def test_noise_does_not_make_it_flap(seed: int) -> None:
    """Half an hour of a load that three replicas are right for, give or take a third at every look."""
    rng = random.Random(seed)
    cluster = a_scaled_cluster(replicas=3)

    counts = list(run(cluster, 1800, lambda: 2.2 * rng.uniform(0.7, 1.3), every_s=15))

    turns = [(one, two) for one, two in itertools.pairwise(counts) if one != two]
    assert all(two > one for one, two in turns), f"replicas went and came: {turns}"
    assert max(counts) <= 4


@pytest.mark.parametrize("seed", range(4))
def test_a_load_that_comes_and_goes_within_the_window_costs_one_step(seed: int) -> None:
    rng = random.Random(seed)
    cluster = a_scaled_cluster()

    counts = list(run(cluster, 1200, lambda: 3.0 if rng.random() < 0.3 else 0.2, every_s=15))

    assert counts == sorted(counts)
    assert counts[-1] == 4


def test_a_restart_of_the_operator_takes_nothing_away() -> None:
    cluster = a_scaled_cluster()
    list(run(cluster, 30, lambda: 3.2))
    cluster.built_in.forget(KEY)

    assert set(run(cluster, 280, lambda: 0.1)) == {4}


def test_leadership_that_was_lost_for_a_while_takes_nothing_away() -> None:
    """What was recommended before is out of the window, and what another leader recommended since is not known here."""
    cluster = a_scaled_cluster()
    list(run(cluster, 30, lambda: 3.2))
    cluster.wait(600)

    assert set(run(cluster, 280, lambda: 0.1)) == {4}


def test_a_behavior_of_its_own_is_honoured() -> None:
    up = {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}
    cluster = a_scaled_cluster(behavior={"scaleUp": up})

    counts = list(run(cluster, 200, lambda: 3.2))

    assert [counts.index(number) * 5 for number in (2, 3, 4)] == pytest.approx([0, 60, 120], abs=15)


def test_a_behavior_that_cannot_be_is_a_condition() -> None:
    cluster = a_scaled_cluster()
    cluster.edit(scaling={"maxReplicas": 4, "behavior": {"scaleUp": {"selectPolicy": "Most"}}})

    cluster.reconcile()

    ready = cluster.condition("Ready")
    assert ready["reason"] == "SpecInvalid"
    assert "spec.scaling.behavior.scaleUp.selectPolicy: is 'Most'" in ready["message"]


def test_without_any_pressure_it_changes_nothing_and_says_so() -> None:
    cluster = a_scaled_cluster(replicas=2)

    cluster.wait(60)
    cluster.reconcile()

    assert cluster.wanted == 2
    active = cluster.condition("ScalingActive")
    assert (active["status"], active["reason"]) == ("False", "MetricsUnavailable")
    assert active["message"] == "no ready replica tells its pressure"


@pytest.mark.parametrize(("bounds", "expected"), [((4, 8), 4), ((1, 2), 2)])
def test_new_bounds_are_met_at_once(bounds: tuple[int, int], expected: int) -> None:
    cluster = a_scaled_cluster(replicas=3)
    cluster.edit(scaling={"minReplicas": bounds[0], "maxReplicas": bounds[1]})

    cluster.reconcile()

    assert cluster.wanted == expected


def test_at_zero_it_rests_and_forgets() -> None:
    cluster = a_scaled_cluster(minReplicas=0)
    list(run(cluster, 20, lambda: 0.8))
    assert len(cluster.built_in) == 1
    cluster.edit(replicas=0)

    assert set(run(cluster, 60, lambda: 0.0)) == {0}
    assert len(cluster.built_in) == 0
    assert cluster.reconcile().look_again_s is None


def test_a_suspended_resource_is_left_alone() -> None:
    cluster = a_scaled_cluster()
    cluster.edit(suspend=True)

    assert set(run(cluster, 60, lambda: 5.0)) == {1}
    assert len(cluster.built_in) == 0, "what was so long ago says nothing when it goes on"


def test_it_decides_every_fifteen_seconds_as_the_hpa_does() -> None:
    cluster = a_scaled_cluster()
    list(run(cluster, 5, lambda: 0.8))

    assert list(run(cluster, 15, lambda: 3.2)) == [1, 1, 4]


def test_what_another_has_written_since_is_not_written_over() -> None:
    """By a person or the gateway, within the same fifteen seconds."""
    cluster = a_scaled_cluster()
    next(run(cluster, 5, lambda: 3.2))
    cluster.edit(replicas=6)

    assert next(run(cluster, 5, lambda: 3.2)) == 6


def test_it_looks_again_when_its_next_decision_is_due_and_writes_nothing_meanwhile() -> None:
    cluster = a_scaled_cluster()
    list(run(cluster, 60, lambda: 0.8))
    cluster.writes.clear()
    outcome = cluster.reconcile()
    assert outcome.look_again_s is not None
    assert 1 <= outcome.look_again_s <= 15

    list(run(cluster, 120, lambda: 0.8))

    assert cluster.writes == []


def test_where_something_else_scales_it_keeps_out() -> None:
    cluster = a_cluster(gpus=8, replicas=1, scaling={"maxReplicas": 8})

    assert set(run(cluster, 60, lambda: 5.0)) == {1}
    assert len(cluster.built_in) == 0
