"""Which schedule of `scaling.schedules` is in force, and what the resource is by it.

A schedule is in force from the moment that its cron fires until any schedule's fires next; of several that fire in the
same minute the last one of the list wins. What a schedule leaves out is as `scaling` says. Pure: the clock is a
parameter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from octavo_operator.api.types import ModelDeployment, Scaling, ScalingSchedule
from octavo_operator.cron import check_crons, last_start, next_start

SOONEST_LOOK_S = 1.0
"""Two clocks never agree; a timer that is a little early must not spin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """The resource as its schedules have it now."""

    resource: ModelDeployment
    """Its `scaling` has the bounds that are in force."""
    schedule: str = ""
    """Name of the schedule in force; "" where there are none."""
    look_again_s: float | None = None
    """Seconds until the next one begins."""


def apply_schedules(resource: ModelDeployment, *, now: datetime) -> Scheduled:
    """Raises SpecInvalidError for a cron expression or time zone that the schema cannot judge."""
    scaling = resource.spec.scaling
    if scaling is None or not scaling.schedules:
        return Scheduled(resource=resource)
    check_schedules(scaling)
    newest = max(enumerate(scaling.schedules), key=lambda each: (_began(each[1], now), each[0]))[1]
    begins = min(next_start(each.cron, each.time_zone, now) for each in scaling.schedules)
    bounded = replace(
        scaling,
        min_replicas=scaling.min_replicas if newest.min_replicas is None else newest.min_replicas,
        max_replicas=scaling.max_replicas if newest.max_replicas is None else newest.max_replicas,
    )
    return Scheduled(
        resource=replace(resource, spec=replace(resource.spec, scaling=bounded)),
        schedule=newest.name,
        look_again_s=max(SOONEST_LOOK_S, (begins - now).total_seconds()),
    )


def check_schedules(scaling: Scaling) -> None:
    """Raises SpecInvalidError for each cron expression or time zone that the schema cannot judge."""
    check_crons(
        (f"spec.scaling.schedules[{number}]", schedule.cron, schedule.time_zone)
        for number, schedule in enumerate(scaling.schedules)
    )


def _began(schedule: ScalingSchedule, now: datetime) -> datetime:
    return last_start(schedule.cron, schedule.time_zone, now)
