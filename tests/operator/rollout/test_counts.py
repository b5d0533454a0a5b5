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


def grown(target: Fleet, *, is_admitted: bool = False, is_scaled: bool = True, old: Fleet | None = None) -> int:
    """What serves has two replicas, and three are wanted."""
    now = Situation(
        wanted=3,
        target=target,
        is_admitted=is_admitted,
        serving={"old": old or fleet(2)},
        others_existing=2,
        is_scaled=is_scaled,
    )
    return surge(now).others["old"]


def test_what_serves_grows_where_a_scaler_asks_and_the_target_does_not_serve_yet() -> None:
    starts = fleet(1, ready=0)

    assert grown(starts) == 3
    assert grown(starts, is_scaled=False) == 2
    assert grown(starts, is_admitted=True) == 2


def test_what_serves_does_not_take_the_room_that_the_target_waits_for() -> None:
    waits = Fleet(count=1, existing=1, lacks_room=True, wants_room=True)

    assert grown(waits) == 2
    assert grown(waits, old=fleet(2, ready=1)) == 1


def test_a_lack_is_given_to_the_first_and_taken_from_no_other() -> None:
    now = Situation(
        wanted=3,
        target=fleet(1, ready=0),
        is_admitted=False,
        serving={"stable": fleet(1), "middle": fleet(2, ready=1)},
        others_existing=3,
        is_scaled=True,
    )

    assert surge(now).others == {"stable": 1, "middle": 2}
