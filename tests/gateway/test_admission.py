"""The bounds of holding, by arithmetic: no clock runs here."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octavo_gateway.admission import HEARTBEAT_EVERY_S, Admission, Hold, retry_after_s


def a_hold(admission: Admission, key: str = "default/m", *, limit: int = 2, timeout_s: float = 60.0) -> Hold:
    return admission.new_hold(key, limit=limit, timeout_s=timeout_s, now=100.0)


def test_one_more_than_the_limit_is_refused() -> None:
    admission = Admission()

    entered = [admission.try_enter(a_hold(admission, limit=2)) for _ in range(3)]

    assert entered == [True, True, False]


def test_the_limit_is_per_model() -> None:
    admission = Admission()
    admission.try_enter(a_hold(admission, "default/a", limit=1))

    assert admission.try_enter(a_hold(admission, "default/b", limit=1))


def test_leaving_makes_room_and_forgets_the_model() -> None:
    admission = Admission()
    hold = a_hold(admission, limit=1)
    admission.try_enter(hold)

    admission.leave(hold)

    assert admission.held() == {}
    assert admission.try_enter(a_hold(admission, limit=1))


def test_leaving_twice_counts_once() -> None:
    admission = Admission()
    first, second = a_hold(admission), a_hold(admission)
    admission.try_enter(first)
    admission.try_enter(second)

    admission.leave(first)
    admission.leave(first)

    assert admission.count("default/m") == 1


def test_a_deadline_stands_through_a_second_wait() -> None:
    admission = Admission()
    hold = a_hold(admission, timeout_s=60.0)
    admission.try_enter(hold)
    admission.leave(hold)

    admission.try_enter(hold)

    assert not hold.is_expired(159.9)
    assert hold.is_expired(160.0)


def test_heartbeats_come_every_ten_seconds_and_not_before() -> None:
    hold = a_hold(Admission())

    due = [hold.take_heartbeat(now) for now in (100.0, 109.9, 110.0, 110.1, 119.9, 120.0)]

    assert due == [False, False, True, False, False, True]


def test_a_stream_wakes_for_its_heartbeat_and_others_for_the_deadline() -> None:
    hold = a_hold(Admission(), timeout_s=60.0)

    assert hold.wait_s(101.0, heartbeats=True) == HEARTBEAT_EVERY_S - 1
    assert hold.wait_s(101.0, heartbeats=False) == 59.0
    assert hold.wait_s(500.0, heartbeats=True) == 0.0


def test_retry_after_is_a_whole_number_between_one_and_thirty() -> None:
    assert [retry_after_s(hold_timeout_s=timeout_s) for timeout_s in (0.1, 100, 86_400)] == [1, 5, 30]


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans())), st.integers(0, 5))
def test_the_count_is_always_the_holds_that_are_in(steps: list[tuple[int, bool]], limit: int) -> None:
    admission = Admission()
    holds = [a_hold(admission, limit=limit) for _ in range(10)]

    for index, enters in steps:
        if enters:
            admission.try_enter(holds[index])
        else:
            admission.leave(holds[index])

        assert admission.count("default/m") == sum(hold.is_in for hold in holds) <= limit
