"""The arithmetic of the HPA controller, for where there is none that can read the pressure.

As Kubernetes 1.36 has it in pkg/controller/podautoscaler: `recommend` is calcPlainMetricReplicas of
replica_calculator.go, `stabilize` and `limit` are stabilizeRecommendationWithBehaviors and
convertDesiredReplicasWithBehaviorRate of horizontal.go. Pure: all memory is the History, the clock is a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from octavo_operator.autoscaling.behavior import Behavior, Policy, Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class PodLoads:
    """What the pods of a resource tell now."""

    pressures: tuple[int, ...]
    """Of those that tell it, in thousandths, as the HPA controller counts."""
    num_silent: int = 0
    """Pods that run and tell nothing: they load, or do not answer."""
    num_pending: int = 0
    """Pods that do not run yet."""


@dataclass(frozen=True, slots=True)
class Sample:
    at: datetime
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What the rules look back on, oldest first."""

    recommendations: tuple[Sample, ...] = ()
    changes: tuple[Sample, ...] = ()
    """Replicas that were added, or taken away (less than 0)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    least: int
    most: int


def recommend(loads: PodLoads, *, current: int, target: int, behavior: Behavior) -> int | None:
    """Replicas that would bring the mean pressure to the target, in thousandths; None where no pod tells any."""
    if not loads.pressures:
        return None
    ratio = _ratio(loads.pressures, target)
    filled = loads.pressures
    if ratio > 1:
        # On the way up what is about to come is taken to be idle.
        filled += (0,) * (loads.num_silent + loads.num_pending)
    elif ratio < 1:
        # On the way down what cannot tell is taken to have just as much as it should.
        filled += (target,) * loads.num_silent
    new_ratio = _ratio(filled, target)
    if _is_within(new_ratio, behavior) or (ratio - 1) * (new_ratio - 1) < 0:
        return current
    wanted = math.ceil(new_ratio * len(filled))
    is_reversed = wanted > current if new_ratio < 1 else wanted < current
    return current if is_reversed and len(filled) > len(loads.pressures) else wanted


def normalize(
    wanted: int, history: History, *, current: int, bounds: Bounds, behavior: Behavior, now: datetime
) -> tuple[int, History]:
    """What comes of a recommendation by windows, policies and bounds, and the history with it."""
    longest_s = max(behavior.up.window_s, behavior.down.window_s)
    kept = _newer(history.recommendations, longest_s, now)
    steady = _stabilize(wanted, kept, current=current, behavior=behavior, now=now)
    desired = _limit(steady, history.changes, current=current, bounds=bounds, behavior=behavior, now=now)
    return desired, replace(history, recommendations=(*kept, Sample(now, wanted)))


def note_change(history: History, change: int, behavior: Behavior, *, now: datetime) -> History:
    """The history once so many replicas have come or gone."""
    longest_s = max(policy.period_s for rules in (behavior.up, behavior.down) for policy in rules.policies)
    return replace(history, changes=(*_newer(history.changes, longest_s, now), Sample(now, change)))


def _ratio(pressures: Sequence[int], target: int) -> float:
    return sum(pressures) // len(pressures) / target


def _is_within(ratio: float, behavior: Behavior) -> bool:
    return 1 - behavior.down.tolerance <= ratio <= 1 + behavior.up.tolerance


def _stabilize(wanted: int, kept: Iterable[Sample], *, current: int, behavior: Behavior, now: datetime) -> int:
    """Up by the least of the up window, down to the most of the down window."""
    samples = tuple(kept)
    up = min((wanted, *(each.number for each in _newer(samples, behavior.up.window_s, now))))
    down = max((wanted, *(each.number for each in _newer(samples, behavior.down.window_s, now))))
    return min(max(current, up), down)


def _limit(
    wanted: int, changes: tuple[Sample, ...], *, current: int, bounds: Bounds, behavior: Behavior, now: datetime
) -> int:
    if wanted > current:
        most = max(current, _reach(behavior.up, 1, changes, current, now))
        return min(wanted, most, bounds.most)
    if wanted < current:
        least = min(current, _reach(behavior.down, -1, changes, current, now))
        return max(wanted, least, bounds.least)
    return wanted


def _reach(rules: Rules, sign: int, changes: tuple[Sample, ...], current: int, now: datetime) -> int:
    """How far the policies let the replicas go in one direction, `sign` 1 or -1."""
    if rules.select == "Disabled":
        return current
    farthest = max if (rules.select == "Max") == (sign > 0) else min
    return farthest(_proposal(policy, sign, changes, current, now) for policy in rules.policies)


def _proposal(policy: Policy, sign: int, changes: tuple[Sample, ...], current: int, now: datetime) -> int:
    at_start = current - sum(each.number for each in _newer(changes, policy.period_s, now))
    if not policy.is_percent:
        return at_start + sign * policy.value
    share = at_start * (1 + sign * policy.value / 100)
    return math.ceil(share) if sign > 0 else int(share)


def _newer(samples: Iterable[Sample], seconds: int, now: datetime) -> tuple[Sample, ...]:
    cutoff = now - timedelta(seconds=seconds)
    return tuple(each for each in samples if each.at > cutoff)
