"""Cron expressions of a spec: when one last fired, when it fires next, and whether it is one at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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


def check_crons(crons: Iterable[tuple[str, str, str]]) -> None:
    """Raises SpecInvalidError for each expression or zone that the schema cannot judge.

    `crons` are paths of the spec's fields, each with its expression and its zone.
    """
    found = (_find_problem(path, cron, time_zone) for path, cron, time_zone in crons)
    problems = tuple(problem for problem in found if problem is not None)
    if problems:
        raise SpecInvalidError(problems)


def _find_problem(path: str, cron: str, time_zone: str) -> Problem | None:
    unknown = _try(f"{path}.timeZone", lambda: _zone(time_zone))
    return unknown or _try(
        f"{path}.cron", lambda: next_start(cron, time_zone, datetime(2026, 1, 1, tzinfo=_zone(time_zone)))
    )


def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name or "UTC")


def _try(path: str, read: Callable[[], object]) -> Problem | None:
    try:
        read()
    except StopIteration:
        return Problem(path, "never fires")
    except (CronSimError, ValueError, OSError, KeyError) as error:
        # zoneinfo raises a KeyError for an unknown zone, a ValueError or OSError for what cannot be a name.
        return Problem(path, str(error.args[0] if error.args else error))
    return None
