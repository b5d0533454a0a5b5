"""The built-in autoscaler's arithmetic, by the tables of Kubernetes' own tests of the HPA controller."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from octavo_operator.autoscaling.behavior import Behavior, Policy, Rules
from octavo_operator.autoscaling.hpa_algorithm import (
    Bounds,
    History,
    PodLoads,
    Sample,
    normalize,
    note_change,
    recommend,
)
from octavo_testing.control_plane import AT

FREELY = Policy(is_percent=True, value=10_000, period_s=60)


def rules(*, window_s: int = 0, tolerance: float = 0.1) -> Rules:
    return Rules(window_s=window_s, select="Max", policies=(FREELY,), tolerance=tolerance)


FREE = Behavior(up=rules(), down=rules())


@pytest.mark.parametrize(
    ("told", "target", "current", "expected"),
    [
        # TestReplicaCalcScaleUpCM, …UnreadyHotCpuNoLessScale, …UnreadyHotCpuScaleWouldScaleDown, …ScaleDownCM, …ToleranceCM
        ([20_000, 10_000, 30_000], 15_000, 3, 4),
        ([50_000, 10_000, 30_000], 15_000, 3, 6),
        ([50_000, 15_000, 30_000], 15_000, 3, 7),
        ([12_000] * 5, 20_000, 5, 3),
        ([20_000, 21_000, 21_000], 20_000, 3, 3),
    ],
)
def test_recommendations_are_those_of_the_replica_calculator(
    told: list[int], target: int, current: int, expected: int
) -> None:
    assert recommend(PodLoads(pressures=tuple(told)), current=current, target=target, behavior=FREE) == expected


@pytest.mark.parametrize(
    ("told", "silent", "pending", "current", "expected"),
    [
        ([4_000], 0, 0, 1, 5),
        ([800], 0, 0, 1, 1),
        ([880], 0, 0, 1, 1),
        # A mean of 880.5 is 880 to the HPA controller, which counts in whole thousandths.
        ([880, 881], 0, 0, 2, 2),
        ([720], 0, 0, 2, 2),
        ([719, 719], 0, 0, 2, 2),
        ([300, 300], 0, 0, 2, 1),
        ([0, 0, 0], 0, 0, 3, 0),
        # One serves and four load: the load is no less because of it, and no more either.
        ([4_000], 4, 0, 5, 5),
        ([4_000], 0, 4, 5, 5),
        ([8_100], 4, 0, 5, 11),
        # Idle as they are taken to be, they bring it near the target, or below it: then nothing is done.
        ([4_400], 4, 0, 5, 5),
        ([4_400], 0, 4, 5, 5),
        ([4_000], 9, 0, 10, 10),
        # On the way down those that are silent count as fully used.
        ([100], 3, 0, 4, 4),
        ([100, 100, 100], 1, 0, 4, 2),
        ([700], 0, 3, 4, 1),
        # Pods are being made or go: what is taken to be so never turns the direction, what is told does.
        ([4_000], 1, 0, 9, 9),
        ([400], 3, 0, 2, 2),
        ([4_000], 0, 0, 9, 5),
        # What is exact stays exact: 1.1 / 0.1 is 11.000000000000002 to a computer.
        ([8_800], 0, 0, 8, 11),
    ],
)
def test_what_is_silent_is_taken_to_be_what_takes_the_smaller_step(
    told: list[int], silent: int, pending: int, current: int, expected: int
) -> None:
    loads = PodLoads(pressures=tuple(told), num_silent=silent, num_pending=pending)

    assert recommend(loads, current=current, target=800, behavior=FREE) == expected


def test_without_a_pressure_there_is_no_recommendation() -> None:
    assert recommend(PodLoads(pressures=(), num_silent=3), current=3, target=800, behavior=FREE) is None


def test_a_tolerance_of_its_own_holds_in_its_direction() -> None:
    eager = Behavior(up=rules(tolerance=0.0), down=rules(tolerance=0.5))

    assert recommend(PodLoads(pressures=(801,)), current=1, target=800, behavior=eager) == 2
    assert recommend(PodLoads(pressures=(401,) * 3), current=3, target=800, behavior=eager) == 3
    assert recommend(PodLoads(pressures=(399,) * 3), current=3, target=800, behavior=eager) == 2


# The table of TestScalingWithRules in horizontal_test.go, as far as it has rules


def policies(pods: int, pods_s: int, percent: int, percent_s: int, *, select: str = "Max") -> Rules:
    """As generateScalingRules: a policy of 0 is none."""
    both = (
        Policy(is_percent=False, value=pods, period_s=pods_s),
        Policy(is_percent=True, value=percent, period_s=percent_s),
    )
    return Rules(window_s=0, select=select, policies=tuple(each for each in both if each.value))


def spread(*numbers: int) -> tuple[Sample, ...]:
    """Changes that are spread over the last 120 seconds."""
    step_s = 120 / len(numbers)
    times = [AT - timedelta(seconds=step_s * (place + 0.5)) for place in range(len(numbers))]
    return tuple(Sample(at, number) for at, number in zip(times, numbers, strict=True))


UP_DEFAULT, DOWN_DEFAULT = policies(4, 15, 100, 15), policies(0, 0, 100, 15)
STEPS = [
    # (current, recommended, bounds, rules for up, rules for down, changes, expected)
    (5, 7, (3, 8), None, None, (), 7),
    (3, 1, (2, 8), None, None, (), 2),
    (100, 1000, (100, 150), None, None, (), 150),
    (3, 1000, (1, 2000), policies(0, 0, 1, 60), None, (), 4),
    (1000, 3, (3, 2000), None, policies(20, 60, 0, 0), (), 980),
    (10, 50, (1, 1000), None, None, (), 20),
    (10, 500, (1, 1000), policies(100, 60, 100, 60), None, (), 110),
    (10, 500, (1, 1000), policies(2, 60, 100, 60), None, (), 20),
    (10, 50, (1, 1000), policies(100, 60, 0, 0), None, (), 50),
    (10, 50, (1, 1000), policies(30, 60, 0, 0), None, (), 40),
    (10, 50, (1, 1000), policies(0, 0, 200, 60), None, (), 30),
    (100, 2, (1, 1000), None, policies(20, 60, 1, 60), (), 80),
    (100, 2, (1, 1000), None, policies(2, 60, 1, 60), (), 98),
    (10, 0, (1, 1000), None, policies(100, 60, 0, 0), (), 1),
    (10, 2, (5, 1000), None, policies(0, 0, 100, 60), (), 5),
    (10, 2, (1, 1000), None, policies(5, 60, 0, 0), (), 5),
    (10, 5, (1, 1000), None, policies(0, 0, 50, 60), (), 5),
    (100, 500, (1, 200), policies(300, 60, 0, 0), None, spread(1, 5, 9), 200),
    (100, 500, (1, 200), policies(0, 0, 10000, 60), None, spread(1, 5, 9), 200),
    (100, 500, (1, 1000), policies(5, 120, 0, 0), None, spread(1, 5, 9), 100),
    (100, 500, (1, 1000), policies(150, 120, 0, 0), None, spread(1, 5, 9), 235),
    (100, 500, (1, 1000), policies(0, 0, 200, 120), None, spread(1, 5, 9), 255),
    (6, 24, (1, 1000), policies(0, 0, 300, 300), None, (*spread(4), *spread(-2)), 16),
    (10, 5, (1, 1000), None, None, spread(-1, -5, -9), 5),
    (100, 0, (5, 1000), None, policies(130, 120, 0, 0), spread(-1, -5, -9), 5),
    (100, 2, (1, 1000), None, policies(5, 120, 0, 0), spread(-1, -5, -9), 100),
    (100, 0, (1, 1000), None, policies(0, 0, 50, 120), spread(-2, -4, -6), 56),
    (10, 1, (1, 1000), None, policies(0, 0, 50, 180), (*spread(2), *spread(-4)), 6),
    (100, 0, (1, 1000), None, policies(0, 0, 10, 120), spread(-10, -10, -10), 100),
    (10, 5, (1, 1000), None, policies(0, 0, 1000, 120), spread(-10, -10, -10), 5),
    # Not in that table: a share that is no whole number, the other choices of a policy, and the end of a period.
    (10, 50, (1, 1000), policies(0, 0, 25, 60), None, (), 13),
    (10, 2, (1, 1000), None, policies(0, 0, 25, 60), (), 7),
    (10, 500, (1, 1000), policies(2, 60, 100, 60, select="Min"), None, (), 12),
    (10, 500, (1, 1000), policies(2, 60, 0, 0, select="Disabled"), None, (), 10),
    (100, 2, (1, 1000), None, policies(20, 60, 1, 60, select="Min"), (), 99),
    (100, 2, (1, 1000), None, policies(20, 60, 1, 60, select="Disabled"), (), 100),
    (10, 500, (1, 1000), policies(4, 60, 0, 0), None, (Sample(AT - timedelta(seconds=60), 9),), 14),
]


@pytest.mark.parametrize(("current", "wanted", "bounds", "up", "down", "changes", "expected"), STEPS)
def test_a_step_is_limited_as_the_hpa_controller_does(
    current: int,
    wanted: int,
    bounds: tuple[int, int],
    up: Rules | None,
    down: Rules | None,
    changes: tuple[Sample, ...],
    expected: int,
) -> None:
    behavior = Behavior(up=up or UP_DEFAULT, down=down or DOWN_DEFAULT)
    limits = Bounds(least=bounds[0], most=bounds[1])

    found, _ = normalize(wanted, History(changes=changes), current=current, bounds=limits, behavior=behavior, now=AT)

    assert found == expected


@pytest.mark.parametrize(
    ("recommended", "wanted", "current", "up_s", "down_s", "expected"),
    [
        ([(61, 5), (59, 8)], 10, 4, 60, 0, 8),
        ([(10, 3)], 10, 4, 60, 0, 4),
        ([(200, 9), (10, 6)], 3, 8, 0, 300, 8),
        ([(301, 9), (10, 6)], 3, 8, 0, 300, 6),
        ([(300, 9)], 3, 8, 0, 300, 3),
        ([], 3, 8, 0, 300, 3),
    ],
)
def test_the_most_cautious_recommendation_of_the_window_counts(
    recommended: list[tuple[int, int]], wanted: int, current: int, up_s: int, down_s: int, expected: int
) -> None:
    behavior = Behavior(up=rules(window_s=up_s), down=rules(window_s=down_s))
    history = History(recommendations=tuple(Sample(AT - timedelta(seconds=ago), each) for ago, each in recommended))

    found, after = normalize(
        wanted, history, current=current, bounds=Bounds(least=1, most=99), behavior=behavior, now=AT
    )

    assert found == expected
    assert after.recommendations[-1] == Sample(AT, wanted), "what was recommended is remembered, not what came of it"


@pytest.mark.parametrize(("up_s", "down_s"), [(20, 40), (40, 20)])
def test_no_more_is_remembered_than_is_looked_back_on(up_s: int, down_s: int) -> None:
    behavior = Behavior(up=policies(1, up_s, 0, 0), down=replace(policies(1, down_s, 0, 0), window_s=30))
    history = History()
    for second in range(100):
        now = AT + timedelta(seconds=second)
        _, history = normalize(3, history, current=3, bounds=Bounds(least=1, most=9), behavior=behavior, now=now)
        history = note_change(history, 1, behavior, now=now)

    assert (len(history.recommendations), len(history.changes)) == (30, 40)
