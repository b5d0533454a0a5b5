"""Which replica is chosen, on told readings, a told time and a seeded generator."""

from __future__ import annotations

import contextlib
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_gateway.balancer import FAILURE_PAUSE_S, Balancer, Load
from octavo_gateway.circuit import EJECT_AFTER, FIRST_EJECTION_S
from octavo_gateway.endpoints import Model, Strategy
from octavo_testing.gateway import a_model, a_replica


def a_balancer(**pressures: float) -> Balancer:
    """Knows the given pressure of each replica, four requests running on it."""
    balancer = Balancer(random.Random(3))
    for name, pressure in pressures.items():
        balancer.report_load(f"http://{name}:8000", Load(pressure=pressure, running=4, waiting=0))
    return balancer


def a_model_of(*names: str) -> Model:
    return a_model("m", *(a_replica(name) for name in names))


def chosen(balancer: Balancer, model: Model, *, times: int = 1, **options: object) -> Counter[str]:
    found = (balancer.choose(model, now=0.0, **options) for _ in range(times))  # type: ignore[arg-type]
    return Counter(replica.pod if replica else "none" for replica in found)


def test_nothing_is_chosen_where_nothing_is_routable() -> None:
    model = a_model("m", a_replica("a", ready=False), a_replica("b", terminating=True))

    assert chosen(a_balancer(), model) == {"none": 1}


def test_of_two_the_one_with_less_pressure_is_chosen() -> None:
    assert chosen(a_balancer(a=0.9, b=0.2), a_model_of("a", "b"), times=50) == {"b": 50}


def test_of_many_the_worst_is_never_chosen_and_the_best_most_often() -> None:
    balancer = a_balancer(a=0.1, b=0.5, c=0.6, d=2.0)

    counts = chosen(balancer, a_model_of("a", "b", "c", "d"), times=600)

    assert counts["d"] == 0
    assert counts["a"] == max(counts.values())
    assert counts["b"] > 0


def test_requests_sent_since_the_reading_count_as_pressure() -> None:
    """Within the second between two readings a burst must not pile up on one replica."""
    balancer, model = a_balancer(a=0.4, b=0.5), a_model_of("a", "b")

    with balancer.in_use("http://a:8000"), balancer.in_use("http://a:8000"):
        assert chosen(balancer, model, times=20) == {"b": 20}
    assert chosen(balancer, model, times=20) == {"a": 20}


def test_equal_pressure_goes_where_fewer_requests_are() -> None:
    balancer, model = a_balancer(), a_model_of("a", "b")

    with balancer.in_use("http://a:8000"):
        assert chosen(balancer, model, times=20) == {"b": 20}


def test_a_burst_on_idle_replicas_spreads() -> None:
    balancer, model = a_balancer(), a_model_of("a", "b", "c", "d")
    counts: Counter[str] = Counter()

    with contextlib.ExitStack() as running:
        for _ in range(100):
            replica = balancer.choose(model, now=0.0)
            assert replica is not None
            running.enter_context(balancer.in_use(replica.url))
            counts[replica.pod] += 1

    assert max(counts.values()) - min(counts.values()) <= 4


def test_a_failed_replica_rests_and_comes_back() -> None:
    balancer, model = a_balancer(), a_model_of("a", "b")
    balancer.report_failure("http://a:8000", now=0.0)

    during = {replica.pod for replica in balancer.routable(model, now=FAILURE_PAUSE_S - 0.1)}
    after = {replica.pod for replica in balancer.routable(model, now=FAILURE_PAUSE_S)}

    assert (during, after) == ({"b"}, {"a", "b"})


def test_a_failed_replica_comes_back_at_once_when_its_load_answers() -> None:
    balancer, model = a_balancer(), a_model_of("a")
    balancer.report_failure("http://a:8000", now=0.0)

    balancer.report_load("http://a:8000", Load(pressure=0.0, running=0, waiting=0))

    assert chosen(balancer, model) == {"a": 1}


def test_a_draining_replica_gets_nothing() -> None:
    balancer = a_balancer()
    balancer.report_load("http://a:8000", Load(pressure=0.0, running=1, waiting=0, draining=True))

    assert chosen(balancer, a_model_of("a", "b"), times=20) == {"b": 20}


def test_an_excluded_replica_is_not_chosen() -> None:
    assert chosen(a_balancer(), a_model_of("a"), exclude={"http://a:8000"}) == {"none": 1}


def test_one_conversation_stays_on_one_replica() -> None:
    model = a_model_of("a", "b", "c", "d")

    assert len(chosen(a_balancer(), model, times=50, affinity="conversation")) == 1


def test_all_gateways_agree_on_a_conversations_replica() -> None:
    model = a_model_of("a", "b", "c", "d")
    gateways = [Balancer(random.Random(seed)) for seed in range(20)]

    picks = {gateway.choose(model, now=0.0, affinity="conversation") for gateway in gateways}

    assert len(picks) == 1


def test_conversations_spread_over_all_replicas() -> None:
    balancer, model = a_balancer(), a_model_of("a", "b", "c", "d")

    counts = sum((chosen(balancer, model, affinity=f"talk {number}") for number in range(400)), Counter())

    assert set(counts) == {"a", "b", "c", "d"}
    assert max(counts.values()) < 2 * min(counts.values())


def test_only_the_lost_replicas_conversations_move() -> None:
    balancer = a_balancer()
    before, after = a_model_of("a", "b", "c", "d"), a_model_of("a", "b", "d")

    for number in range(100):
        old = balancer.choose(before, now=0.0, affinity=f"talk {number}")
        new = balancer.choose(after, now=0.0, affinity=f"talk {number}")
        assert old is not None
        assert old.pod == "c" or old == new


def test_a_hot_prefix_spills_over_when_its_replica_is_over_the_bound() -> None:
    model = a_model_of("a", "b", "c", "d")
    (home,) = chosen(a_balancer(), model, affinity="hot")
    balancer = a_balancer(**{name: 4.0 if name == home else 0.1 for name in "abcd"})

    assert home not in chosen(balancer, model, times=20, affinity="hot")


def test_a_busy_home_within_the_bound_keeps_its_conversation() -> None:
    model = a_model_of("a", "b", "c", "d")
    (home,) = chosen(a_balancer(), model, affinity="hot")
    balancer = a_balancer(**{name: 0.9 if name == home else 0.7 for name in "abcd"})

    assert set(chosen(balancer, model, times=20, affinity="hot")) == {home}


@given(st.lists(st.floats(0, 4), min_size=5, max_size=5), st.integers(0, 50))
def test_all_gateways_agree_where_a_conversation_spills_over_to(pressures: list[float], talk: int) -> None:
    """As far as they have read the same; who was asked first, and what for, changes nothing."""
    loads = dict(zip("abcde", pressures, strict=True))
    gateways = [a_balancer(**loads), a_balancer(**dict(reversed(loads.items())))]
    chosen(gateways[0], a_model_of(*"abcde"), times=7)

    picks = {gateway.choose(a_model_of(*"abcde"), now=0.0, affinity=f"talk {talk}") for gateway in gateways}

    assert len(picks) == 1


def test_a_conversation_that_spilled_over_comes_home_when_its_home_has_room_again() -> None:
    model = a_model_of(*"abcd")
    (home,) = chosen(a_balancer(), model, affinity="hot")
    busy = a_balancer(**{name: 4.0 if name == home else 0.1 for name in "abcd"})
    (refuge,) = chosen(busy, model, times=20, affinity="hot")

    busy.report_load(f"http://{home}:8000", Load(pressure=0.2, running=4, waiting=0))

    assert refuge != home
    assert set(chosen(busy, model, times=20, affinity="hot")) == {home}


def test_one_busy_replica_sends_only_its_own_conversations_elsewhere_and_each_to_one_place() -> None:
    model = a_model_of(*"abcd")
    calm, busy = a_balancer(), a_balancer(a=4.0, b=0.1, c=0.1, d=0.1)

    for number in range(200):
        (before,) = chosen(calm, model, affinity=f"talk {number}")
        (after,) = chosen(busy, model, times=5, affinity=f"talk {number}")
        assert (before == "a") == (after != before)


@pytest.mark.parametrize("pressures", [{}, {"a": 4.0, "b": 0.1, "c": 0.1, "d": 0.1, "e": 0.1}], ids=["calm", "busy"])
def test_where_a_replica_comes_or_goes_only_its_share_of_conversations_moves(pressures: dict[str, float]) -> None:
    balancer = a_balancer(**pressures)
    few, many = a_model_of(*"abcd"), a_model_of(*"abcde")
    moved = 0

    for number in range(600):
        (with_few,) = chosen(balancer, few, affinity=f"talk {number}")
        (with_many,) = chosen(balancer, many, affinity=f"talk {number}")
        assert with_many in ("e", with_few)
        moved += with_many != with_few

    share = 600 / (4 if pressures else 5)
    assert 0.7 * share < moved < 1.3 * share


def sicken(balancer: Balancer, *names: str, now: float = 0.0) -> None:
    for name in names:
        for _ in range(EJECT_AFTER):
            balancer.report_sick(f"http://{name}:8000", now=now)


def left(balancer: Balancer, model: Model, *, now: float) -> str:
    return "".join(replica.pod for replica in balancer.routable(model, now=now))


def test_a_replica_that_fails_again_and_again_is_left_alone_though_its_load_answers() -> None:
    balancer, model = a_balancer(), a_model_of("a", "b")
    sicken(balancer, "a")
    balancer.report_load("http://a:8000", Load(pressure=0.0, running=0, waiting=0))

    assert left(balancer, model, now=FIRST_EJECTION_S - 0.1) == "b"
    assert left(balancer, model, now=FIRST_EJECTION_S) == "ab"


@pytest.mark.parametrize(("names", "least"), [("a", 1), ("ab", 1), ("abc", 2), ("abcd", 2), ("abcde", 3)])
def test_at_most_half_of_the_replicas_are_left_alone(names: str, least: int) -> None:
    balancer, model = a_balancer(), a_model_of(*names)
    sicken(balancer, *names)

    assert len(left(balancer, model, now=1.0)) == least


def test_of_too_many_sick_ones_those_come_back_that_would_anyway_come_back_first() -> None:
    balancer, model = a_balancer(), a_model_of("a", "b")
    sicken(balancer, "a", now=1.0)
    sicken(balancer, "b", now=0.0)

    assert left(balancer, model, now=2.0) == "b"


def test_one_request_at_a_time_tries_whether_it_is_well_again() -> None:
    balancer, model = a_balancer(), a_model_of("a", "b")
    sicken(balancer, "a")
    now = FIRST_EJECTION_S

    with balancer.in_use("http://a:8000", now=now):
        assert left(balancer, model, now=now) == "b"
        balancer.report_answer("http://a:8000")
        assert left(balancer, model, now=now) == "ab"
    assert left(balancer, model, now=now) == "ab"


def test_a_probe_without_an_answer_leaves_the_next_one_to_try() -> None:
    """The client of the probe went away: nothing was learnt."""
    balancer, model = a_balancer(), a_model_of("a", "b")
    sicken(balancer, "a")
    with balancer.in_use("http://a:8000", now=FIRST_EJECTION_S):
        pass

    assert left(balancer, model, now=FIRST_EJECTION_S) == "ab"


def test_a_spill_is_told_and_a_home_is_not() -> None:
    spilled: list[str] = []
    model = a_model_of("a", "b")
    (home,) = chosen(a_balancer(), model, affinity="hot")
    balancer = Balancer(random.Random(1), on_spill=spilled.append)

    balancer.choose(model, now=0.0, affinity="hot")
    assert spilled == []
    balancer.report_load(f"http://{home}:8000", Load(pressure=9.0, running=4, waiting=0))
    balancer.choose(model, now=0.0, affinity="hot")
    assert spilled == ["default/m"]


def test_least_pressure_lets_no_conversation_stay_on_a_busier_replica() -> None:
    names = ("a", "b")
    (home,) = chosen(a_balancer(), a_model_of(*names), affinity="talk")
    balancer = a_balancer(**{name: 0.4 if name == home else 0.3 for name in names})
    model = a_model("m", *map(a_replica, names), strategy=Strategy.LEAST_PRESSURE)

    assert home not in chosen(balancer, model, times=20, affinity="talk")
    assert set(chosen(balancer, a_model_of(*names), times=20, affinity="talk")) == {home}


def test_turns_go_round_whatever_the_pressure_and_skip_who_is_out() -> None:
    balancer = a_balancer(a=0.1, b=3.0, c=0.2)
    model = a_model("m", *map(a_replica, "abc"), strategy=Strategy.ROUND_ROBIN)

    def turns(number: int) -> list[str]:
        return [next(iter(chosen(balancer, model, affinity="talk"))) for _ in range(number)]

    assert turns(6) == ["a", "b", "c", "a", "b", "c"]
    balancer.report_failure("http://b:8000", now=0.0)
    assert turns(4) == ["a", "c", "a", "c"]


def test_turns_of_models_that_left_are_forgotten() -> None:
    balancer = a_balancer()
    model = a_model("m", *map(a_replica, "ab"), strategy=Strategy.ROUND_ROBIN)
    chosen(balancer, model)

    balancer.keep_only([])

    assert chosen(balancer, model) == {"a": 1}


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8), st.text())
def test_affinity_always_finds_a_replica(pressures: list[float], affinity: str) -> None:
    names = [f"r{number}" for number in range(len(pressures))]
    balancer = a_balancer(**dict(zip(names, pressures, strict=True)))

    replica = balancer.choose(a_model_of(*names), now=0.0, affinity=affinity.encode("utf-8", "replace").decode())

    assert replica is not None


def test_state_of_replicas_that_left_is_forgotten() -> None:
    balancer = a_balancer(a=0.5, b=0.5)

    balancer.keep_only([a_model_of("b")])

    assert (balancer.score("http://a:8000"), balancer.score("http://b:8000")) == (0.0, 0.5)


def test_a_request_may_outlive_its_replicas_state() -> None:
    balancer = a_balancer()
    with balancer.in_use("http://a:8000"):
        balancer.keep_only([])

    assert balancer.in_flight("http://a:8000") == 0


def test_in_flight_ends_with_an_error_too() -> None:
    balancer = a_balancer()

    with pytest.raises(RuntimeError), balancer.in_use("http://a:8000"):
        raise RuntimeError

    assert balancer.in_flight("http://a:8000") == 0
