"""A replica's circuit, on a told time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octavo_gateway.circuit import EJECT_AFTER, FIRST_EJECTION_S, MAX_EJECTION_S, Circuit, ejected


def failing(circuit: Circuit, times: int, *, now: float = 0.0) -> list[float]:
    """The ejections that so many failures bring about."""
    return [seconds for _ in range(times) if (seconds := circuit.record_failure(now)) is not None]


def test_failures_in_a_row_eject_and_an_answer_between_them_does_not_let_it_come_to_that() -> None:
    circuit = Circuit()

    assert failing(circuit, EJECT_AFTER - 1) == []
    circuit.record_answer()
    assert failing(circuit, EJECT_AFTER - 1) == []
    assert failing(circuit, 1) == [FIRST_EJECTION_S]


def test_each_failed_probe_doubles_the_time_up_to_a_bound() -> None:
    circuit, now, times = Circuit(), 0.0, []
    times += failing(circuit, EJECT_AFTER)
    for _ in range(60):
        now += times[-1]
        times += failing(circuit, 1, now=now)

    assert times[:4] == [FIRST_EJECTION_S * 2**power for power in range(4)]
    assert times[-1] == MAX_EJECTION_S
    assert len(times) == 61


def test_late_failures_of_requests_from_before_do_not_prolong_it() -> None:
    circuit = Circuit()
    failing(circuit, EJECT_AFTER)

    assert failing(circuit, 10, now=1.0) == []
    assert not circuit.blocks(FIRST_EJECTION_S)


def test_an_answer_forgives_everything() -> None:
    circuit = Circuit()
    failing(circuit, EJECT_AFTER)
    circuit.record_answer()

    assert not circuit.blocks(0.0)
    assert failing(circuit, EJECT_AFTER) == [FIRST_EJECTION_S]


@given(st.lists(st.tuples(st.sampled_from(["fail", "answer", "wait"]), st.floats(0, 400)), max_size=60))
def test_it_always_comes_back_within_the_longest_ejection(steps: list[tuple[str, float]]) -> None:
    circuit, now = Circuit(), 0.0
    for step, seconds in steps:
        if step == "fail":
            circuit.record_failure(now)
        elif step == "answer":
            circuit.record_answer()
        else:
            now += seconds

    assert not circuit.blocks(now + MAX_EJECTION_S)


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 100), max_size=9), st.integers(0, 12))
def test_never_more_than_half(until: dict[str, float], others: int) -> None:
    circuits = {name: Circuit(ejected_until=seconds) for name, seconds in until.items()}
    replicas = len(circuits) + others

    out = ejected(circuits, num_replicas=replicas, now=50.0)

    blocked = {name for name, seconds in until.items() if seconds > 50.0}
    assert len(out) == min(len(blocked), replicas // 2)
    assert out <= blocked
