"""Cron expressions of a spec: when one last fired, when it fires next, and whether it is one at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from octavo_operator.api.reader import Problem
from octavo_operator.errors import SpecInvalidError

LONGEST_SHIFT = timedelta(hours=3)
"""Clocks are set back by less."""


def last_start(cron: str, time_zone: str, now: datetime) -> datetime:
    """The newest time up to `now`, in UTC; an empty zone is UTC."""
    # Where clocks are set back, a time comes twice: only on its way forward cronsim tells which of the two is meant.
    newest = next(CronSim(cron, (now - LONGEST_SHIFT).astimezone(_zone(time_zone)), reverse=True))
    for start in CronSim(cron, newest):
        if start.astimezone(UTC) > now:
            break
        newest = start
    return newest.astimezone(UTC)


def next_start(cron: str, time_zone: str, now: datetime) -> datetime:
    """The first time after `now`, in UTC."""
    starts = (start.astimezone(UTC) for start in CronSim(cron, now.astimezone(_zone(time_zone))))
    return next(start for start in starts if start > now)


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
