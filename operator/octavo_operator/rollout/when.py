"""When a rollout may begin: at once, while nobody asks anything, or in a window that a cron expression opens.

Only the beginning waits. What has begun goes on when the window closes, because half a rollout is worse than a late one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from octavo_operator.api.rollout_status import format_time
from octavo_operator.api.types import RolloutWhen
from octavo_operator.cron import check_crons, last_start, next_start

IDLE_S = 60
"""So long nobody must have asked before an idle model rolls over."""
LOOK_AT_IDLENESS_S = 5.0
LONGEST_LOOK_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """What a rollout waits for."""

    why: str
    look_again_s: float


def why_wait(when: RolloutWhen, *, idle_for_s: float | None, now: datetime) -> Wait | None:
    """None where it may begin; `idle_for_s` is None where some replica does not tell whether it is idle."""
    if when.policy == "Idle":
        return None if idle_for_s is not None and idle_for_s >= IDLE_S else _wait_for_idleness()
    if when.policy == "Window":
        return _wait_for_window(when, now)
    return None


def check_window(when: RolloutWhen) -> None:
    """Raises SpecInvalidError for a cron expression or time zone that the schema cannot judge."""
    if when.policy == "Window":
        check_crons([("spec.rollout.when", when.cron, when.time_zone)])


def _wait_for_idleness() -> Wait:
    why = f"rollout.when is Idle and no {IDLE_S} s have passed without a request"
    return Wait(why=why, look_again_s=LOOK_AT_IDLENESS_S)


def _wait_for_window(when: RolloutWhen, now: datetime) -> Wait | None:
    opened = last_start(when.cron, when.time_zone, now)
    if now < opened + timedelta(seconds=when.duration_s):
        return None
    opens = next_start(when.cron, when.time_zone, now)
    why = f"rollout.when is Window {when.cron!r} and the next one opens at {format_time(opens)}"
    return Wait(why=why, look_again_s=min(LONGEST_LOOK_S, max(1.0, (opens - now).total_seconds())))
