"""Quota arithmetic on a told time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_gateway.quota import (
    LEASE_GRACE_S,
    LEASE_S,
    MAX_BOOTS,
    SLOT_S,
    WINDOW_S,
    Account,
    Ledger,
    Limits,
    Report,
    Window,
)


def a_report(*ages: tuple[float, int], need: int = 0, want: int = 0, day: int = 1, day_tokens: int = 0) -> Report:
    return Report(ages=ages, day=day, day_tokens=day_tokens, need=need, want=want)


MINUTE = Limits(per_minute=1000)
steps = st.lists(st.tuples(st.floats(0, 30), st.integers(0, 500)), max_size=60)


@given(steps)
def test_a_window_is_the_sum_of_the_last_minute_and_never_long(spent: list[tuple[float, int]]) -> None:
    window, now, told = Window(), 0.0, []
    for pause_s, tokens in spent:
        now += pause_s
        window.add(now, tokens)
        told.append((now, tokens))

        total = window.total(now)
        assert sum(tokens for at, tokens in told if at > now - WINDOW_S) <= total
        assert total <= sum(tokens for at, tokens in told if at > now - WINDOW_S - SLOT_S)
        assert len(window.by_age(now)) <= WINDOW_S + 1


@given(steps, st.floats(100, 1e6))
def test_a_window_told_by_age_is_the_same_on_another_clock(spent: list[tuple[float, int]], offset: float) -> None:
    window, now = Window(), 0.0
    for pause_s, tokens in spent:
        now += pause_s
        window.add(now, tokens)

    copy = Window.from_ages(window.by_age(now), now=offset)

    assert copy.total(offset) == window.total(now)
    assert [tokens for _, tokens in copy.by_age(offset)] == [tokens for _, tokens in window.by_age(now)]


def test_what_has_left_the_window_is_not_given_back_a_second_time() -> None:
    window = Window()
    window.add(0.5, 100)
    window.add(30.0, 50)
    window.give_back(0.5, 60, now=31.0)
    assert window.total(31.0) == 90

    window.give_back(0.5, 40, now=70.0)

    assert window.total(70.0) == 50


def test_a_lease_is_not_lent_twice_until_it_and_its_grace_are_over() -> None:
    ledger = Ledger()

    first = ledger.ask("a", a_report(want=700, need=700), MINUTE, now=0.0, latest_day=2)
    second = ledger.ask("b", a_report(want=700, need=700), MINUTE, now=0.1, latest_day=2)
    later = ledger.ask("b", a_report(want=700, need=700), MINUTE, now=LEASE_S + LEASE_GRACE_S, latest_day=2)

    assert (first.tokens, second.tokens, later.tokens) == (700, 0, 700)
    assert (second.minute_left, second.retry_after_s) == (300, 3)


def test_what_was_spent_counts_once_however_often_it_is_told() -> None:
    ledger = Ledger()
    for _ in range(5):
        ledger.ask("a", a_report((0, 400)), MINUTE, now=10.0, latest_day=2)
    ledger.ask("b", a_report((0, 300)), MINUTE, now=10.0, latest_day=2)

    assert ledger.minute_tokens(10.0) == 700
    assert ledger.ask("a", a_report((0, 400), want=500, need=1), MINUTE, now=10.0, latest_day=2).tokens == 300


def test_a_refusal_says_when_enough_has_left_the_minute() -> None:
    ledger = Ledger()
    ledger.ask("a", a_report((50, 600), (20, 400)), MINUTE, now=100.0, latest_day=2)

    assert ledger.ask("b", a_report(want=500, need=500), MINUTE, now=100.0, latest_day=2).retry_after_s == 11
    assert ledger.ask("b", a_report(want=700, need=700), MINUTE, now=100.0, latest_day=2).retry_after_s == 41


def test_a_request_larger_than_the_budget_gets_in_where_nothing_is_spent() -> None:
    limits, ledger = Limits(per_minute=100), Ledger()
    need = limits.needed(5000)

    assert ledger.ask("a", a_report(want=need, need=need), limits, now=0.0, latest_day=2).tokens == 100
    assert ledger.ask("b", a_report((0, 1), want=need, need=need), limits, now=10.0, latest_day=2).tokens == 0


def test_a_day_is_the_sum_of_all_gateways_and_of_those_that_are_gone() -> None:
    limits, ledger = Limits(per_day=1000), Ledger()
    ledger.merge_saved(1, {"gone": 300, "a": 100})
    ledger.ask("a", a_report(day_tokens=250), limits, now=0.0, latest_day=2)
    grant = ledger.ask("b", a_report(want=900, need=1), limits, now=0.0, latest_day=2)

    assert (ledger.day_tokens(1), grant.tokens, grant.day_left) == (550, 450, 450)
    ledger.merge_saved(1, {"a": 10, "gone": 300})
    assert ledger.day_tokens(1) == 550


def test_a_new_day_begins_at_nothing_and_an_old_one_does_not_come_back() -> None:
    limits, ledger = Limits(per_day=1000), Ledger()
    ledger.ask("a", a_report(day_tokens=900), limits, now=0.0, latest_day=2)

    grant = ledger.ask("a", a_report(day=2, day_tokens=0, want=800, need=1), limits, now=1.0, latest_day=2)
    ledger.merge_saved(1, {"a": 900})

    assert (grant.tokens, ledger.day_tokens(2)) == (800, 0)


def test_a_day_that_only_a_wrong_clock_can_have_begun_counts_for_nothing() -> None:
    limits, ledger = Limits(per_day=1000), Ledger()
    ledger.ask("a", a_report(day=40_000, day_tokens=900), limits, now=0.0, latest_day=40_000)

    ledger.ask("a", a_report(day=2, day_tokens=700), limits, now=1.0, latest_day=2)
    ledger.ask("b", a_report(day=40_000, day_tokens=100), limits, now=1.0, latest_day=2)
    grant = ledger.ask("c", a_report(day=2, want=900, need=1), limits, now=2.0, latest_day=2)

    assert (grant.tokens, ledger.day_tokens(2)) == (300, 700)


def test_what_yesterdays_request_did_not_need_is_not_given_back_today() -> None:
    account = Account(lease=1000, lease_until=9.0)
    account.spend(500, now=1.0, day=1)
    account.add(300, now=3.0, day=2)

    account.settle(500, 1.0, 1, 100, now=3.0, day=2)

    assert (account.window.total(3.0), account.day.on(2)) == (400, 300)


def test_gateways_that_came_and_went_are_one_sum_in_the_end() -> None:
    ledger = Ledger()
    for number in range(100):
        ledger.ask(f"g{number}", a_report(day_tokens=10), Limits(per_day=10**6), now=1000.0 * number, latest_day=2)

    assert ledger.day_tokens(1) == 1000
    assert len(ledger.days) <= MAX_BOOTS + 1
    assert len(ledger.heard) == 1


def test_a_lease_is_a_twentieth_of_the_minute_or_of_what_a_minute_has_of_the_day() -> None:
    assert Limits(per_minute=1000).lease_tokens == 50
    assert Limits(per_day=1_440_000).lease_tokens == 50
    assert Limits(per_minute=1).lease_tokens == 1


def test_an_account_spends_from_its_lease_until_that_is_over() -> None:
    account = Account(lease=100, lease_until=2.0)

    assert account.spend(60, now=0.0, day=1)
    assert not account.spend(60, now=0.0, day=1)
    assert not account.spend(10, now=2.0, day=1)
    assert (account.window.total(2.0), account.day.on(1)) == (60, 60)


@pytest.mark.parametrize(("actual", "total"), [(80, 80), (50, 50), (0, 0), (130, 130)])
def test_in_the_end_what_the_answer_says_counts(actual: int, total: int) -> None:
    account = Account(lease=100, lease_until=9.0)
    account.spend(80, now=1.0, day=1)

    account.settle(80, 1.0, 1, actual, now=5.0, day=1)

    assert (account.window.total(5.0), account.day.on(1)) == (total, total)


def test_an_estimate_learns_from_answers_and_is_bounded_by_max_tokens() -> None:
    account = Account()
    for _ in range(60):
        account.learn(num_bytes=400, prompt_tokens=200, output_tokens=300, num_answers=1)

    assert account.estimate(num_bytes=400, max_tokens=None, num_answers=1) == pytest.approx(500, abs=3)
    assert account.estimate(num_bytes=400, max_tokens=10, num_answers=2) == pytest.approx(220, abs=3)
