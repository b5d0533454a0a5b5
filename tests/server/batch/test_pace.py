"""How many lines run beside live traffic."""

from __future__ import annotations

from octavo_server.batch.pace import BETWEEN_S, PATIENCE_S, Load, Pace


def a_load(*, live: int = 0, waiting: int = 0, seats: int = 128, is_open: bool = True) -> Load:
    return Load(is_open=is_open, num_live=live, num_waiting=waiting, max_num_seqs=seats)


def test_alone_a_batch_uses_its_places_but_no_more_than_the_engine_has() -> None:
    assert Pace(32).num_allowed(a_load(), 0, 0.0) == 32
    assert Pace(32).num_allowed(a_load(seats=8), 0, 0.0) == 8
    # Lines that wait in the engine, because the cache is full, wait for each other alone.
    assert Pace(32).num_allowed(a_load(waiting=5), 32, 0.0) == 32


def test_beside_live_requests_it_keeps_to_a_quarter_but_ends_what_it_began() -> None:
    assert Pace(32).num_allowed(a_load(live=1), 0, 0.0) == 8
    assert Pace(32).num_allowed(a_load(live=1), 20, 0.0) == 20
    assert Pace(2).num_allowed(a_load(live=100), 0, 0.0) == 1


def test_while_a_live_request_waits_none_begins_and_after_a_while_some_are_given_back() -> None:
    pace, load = Pace(32), a_load(live=3, waiting=1)

    allowed = [pace.num_allowed(load, 10, now) for now in (0.0, PATIENCE_S / 2)]
    given_back = pace.num_allowed(load, 10, PATIENCE_S)
    soon_after = pace.num_allowed(load, 9, PATIENCE_S + BETWEEN_S / 2)
    later = pace.num_allowed(load, 9, PATIENCE_S + BETWEEN_S * 1.01)

    assert allowed == [10, 10]
    assert (given_back, soon_after, later) == (9, 9, 8)
    assert pace.num_allowed(load, 0, 100.0) == 0


def test_patience_begins_anew_when_nobody_waits() -> None:
    pace = Pace(32)
    pace.num_allowed(a_load(live=1, waiting=1), 10, 0.0)
    pace.num_allowed(a_load(live=1), 10, 0.5)

    assert pace.num_allowed(a_load(live=1, waiting=1), 10, PATIENCE_S) == 10


def test_while_the_server_loads_or_drains_nothing_runs() -> None:
    assert Pace(32).num_allowed(a_load(is_open=False), 10, 0.0) == 0
