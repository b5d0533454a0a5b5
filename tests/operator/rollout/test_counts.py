"""Replicas of each revision, by strategy, from the counts of the others."""

from __future__ import annotations

from octavo_operator.rollout.counts import Counts, Situation, hold_and_swap, surge
from octavo_operator.rollout.fleet import Fleet


def fleet(count: int, *, ready: int | None = None) -> Fleet:
    """All pods exist and live on nodes; they are ready unless it is said how many are."""
    return Fleet(count=count, existing=count, placed=count, ready=count if ready is None else ready)


def test_ready_replicas_are_kept_before_those_that_are_not() -> None:
    """Else a spec that changes in the middle of a rollout would take one away that serves."""
    now = Situation(
        wanted=3,
        target=Fleet(),
        is_admitted=False,
        serving={"stable": fleet(2, ready=1), "middle": fleet(2)},
        others_existing=4,
    )

    assert surge(now) == Counts(target=1, others={"stable": 1, "middle": 2})


def test_swap_begins_with_what_is_beyond_the_wanted_count() -> None:
    now = Situation(wanted=2, target=Fleet(), is_admitted=False, serving={"old": fleet(4)}, others_existing=4)

    assert hold_and_swap(now) == Counts(target=0, others={"old": 1})


def test_nothing_is_taken_away_before_it_may_begin() -> None:
    now = Situation(
        wanted=2, target=Fleet(), is_admitted=False, serving={"old": fleet(2)}, others_existing=2, may_begin=False
    )

    assert hold_and_swap(now) == Counts(target=0, others={"old": 2})
