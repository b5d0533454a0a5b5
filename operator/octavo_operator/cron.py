"""Cron expressions of a spec: when one last fired, when it fires next, and whether it is one at all."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from octavo_operator.api.reader import Problem
from octavo_operator.errors import SpecInvalidError


def last_start(cron: str, time_zone: str, now: datetime) -> datetime:
    """The newest time up to `now`; an empty zone is UTC."""
    # Backwards from the next minute, which does not count: what fires this very minute has fired.
    next_minute = now.astimezone(_zone(time_zone)).replace(second=0, microsecond=0) + timedelta(minutes=1)
    return next(CronSim(cron, next_minute, reverse=True))


def next_start(cron: str, time_zone: str, now: datetime) -> datetime:
    """The first time after `now`."""
    return next(CronSim(cron, now.astimezone(_zone(time_zone))))


def check_cron(path: str, cron: str, time_zone: str) -> None:
    """Raises SpecInvalidError for an expression or zone of the spec's field `path` that the schema cannot judge."""
    _checked(f"{path}.timeZone", lambda: _zone(time_zone))
    _checked(f"{path}.cron", lambda: next_start(cron, time_zone, datetime(2026, 1, 1, tzinfo=_zone(time_zone))))


def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name or "UTC")


def _checked(path: str, read: Callable[[], object]) -> None:
    try:
        read()
    except StopIteration:
        problem = "never fires"
    except (CronSimError, ValueError, OSError, KeyError) as error:
        # zoneinfo raises a KeyError for an unknown zone, a ValueError or OSError for what cannot be a name.
        problem = str(error.args[0] if error.args else error)
    else:
        return
    raise SpecInvalidError((Problem(path, problem),))
