"""`spec.scaling`: how many replicas there may be, and what decides, by the same rules as the CRD's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo_operator.api.quantity import parse_duration_s
from octavo_operator.api.reader import ObjectReader
from octavo_operator.api.rollout import CRON
from octavo_operator.api.types import DEFAULT_IDLE_AFTER_S, Scaling, ScalingSchedule

BACKENDS = ("Auto", "HPA", "KEDA", "BuiltIn")
MAX_REPLICAS = 1000
MAX_SCHEDULES = 16
PRESSURE = r"0\.[1-9][0-9]{0,2}|0\.0[1-9][0-9]?|0\.00[1-9]|[1-9][0-9]{0,2}(\.[0-9]{1,3})?"
SCHEDULE_NAME = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
TIME_ZONE = r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*"


def parse_scaling(raw: ObjectReader) -> Scaling:
    least = raw.integer("minReplicas", low=0, high=MAX_REPLICAS, default=1)
    most = raw.integer("maxReplicas", low=1, high=MAX_REPLICAS, default=MAX_REPLICAS)
    idle_after_s = raw.duration_s("idleAfter", default=0)
    schedules = _schedules(raw, least, most)
    may_sleep = 0 in (least, *(schedule.min_replicas for schedule in schedules))
    if not raw.has("maxReplicas"):
        raw.complain("maxReplicas", "is required")
    if least > most:
        raw.complain("minReplicas", f"{least} is greater than maxReplicas {most}")
    if parse_duration_s(str(raw.raw.get("idleAfter") or "unset")) == 0:
        raw.complain("idleAfter", "must be longer than 0s; leave it out for 10m")
    if idle_after_s and not may_sleep:
        raw.complain("idleAfter", f"scales to zero and needs minReplicas 0, which is {least}, or a schedule with it")
    result = Scaling(
        min_replicas=least,
        max_replicas=most,
        target_pressure=raw.string(
            "targetPressure", default="0.8", pattern=PRESSURE, remedy='must be a string greater than 0, such as "0.8"'
        ),
        idle_after_s=idle_after_s or DEFAULT_IDLE_AFTER_S if may_sleep else idle_after_s,
        backend=raw.choice("backend", BACKENDS, default="Auto"),
        behavior=_behavior(raw),
        schedules=schedules,
    )
    raw.finish()
    return result


def _behavior(raw: ObjectReader) -> Mapping[str, Any]:
    behavior = raw.child("behavior")
    sides = {side: behavior.mapping(side) for side in ("scaleUp", "scaleDown") if behavior.has(side)}
    if raw.has("behavior") and not sides:
        behavior.complain("", "needs scaleUp or scaleDown")
    return sides


def _schedules(raw: ObjectReader, least: int, most: int) -> tuple[ScalingSchedule, ...]:
    items = raw.take("schedules")
    if items is None:
        return ()
    if not isinstance(items, list) or len(items) > MAX_SCHEDULES:
        raw.complain("schedules", f"must be a list of at most {MAX_SCHEDULES} objects")
        return ()
    readers = (ObjectReader(item, f"{raw.path}.schedules[{number}]", raw.problems) for number, item in enumerate(items))
    schedules = tuple(_schedule(reader, least, most) for reader in readers)
    names = [schedule.name for schedule in schedules]
    for name in sorted({name for name in names if names.count(name) > 1}):
        raw.complain("schedules", f"holds the name {name!r} twice")
    return schedules


def _schedule(raw: ObjectReader, least: int, most: int) -> ScalingSchedule:
    result = ScalingSchedule(
        name=raw.string("name", pattern=SCHEDULE_NAME, remedy="must hold lower-case letters, digits and '-'"),
        cron=raw.string("cron", pattern=CRON, remedy='must have five fields, such as "0 8 * * 1-5"'),
        time_zone=raw.string("timeZone", pattern=TIME_ZONE, remedy="must be like Europe/Berlin"),
        min_replicas=_count(raw, "minReplicas", low=0),
        max_replicas=_count(raw, "maxReplicas", low=1),
    )
    for field in ("name", "cron"):
        if not raw.has(field):
            raw.complain(field, "is required")
    low = least if result.min_replicas is None else result.min_replicas
    high = most if result.max_replicas is None else result.max_replicas
    if low > high:
        raw.complain("minReplicas", f"{low} is greater than maxReplicas {high} while it is in force")
    raw.finish()
    return result


def _count(raw: ObjectReader, field: str, *, low: int) -> int | None:
    return raw.integer(field, low=low, high=MAX_REPLICAS) if raw.has(field) else raw.take(field)
