"""Rules of the decisions that the HPA cannot take."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_operator.autoscaling.policy import Idleness, decide_zero

IDLE = Idleness(idle_for_s=600.0, since_last_wake_s=None, held=0)


def decide(idleness: Idleness = IDLE, *, min_replicas: int = 0, replicas: int = 2):
    return decide_zero(min_replicas=min_replicas, replicas=replicas, idle_after_s=600.0, idleness=idleness)


def test_idle_for_idle_after_goes_to_zero():
    decision = decide()

    assert decision.to_zero
    assert decision.reason == "no request for 600 s, which is its idleAfter"
    assert decision.blocked_by == ""


def test_a_moment_less_than_idle_after_stays():
    decision = decide(replace(IDLE, idle_for_s=599.9))

    assert not decision.to_zero
    assert decision.blocked_by == ""


def test_min_replicas_above_zero_never_goes_to_zero():
    decision = decide(min_replicas=1)

    assert not decision.to_zero
    assert "minReplicas is 1" in decision.reason


def test_zero_replicas_need_no_decision():
    assert not decide(replicas=0).to_zero


@pytest.mark.parametrize(
    ("change", "blocked_by", "said"),
    [
        ({"held": 3}, "HoldingRequests", "3 requests"),
        ({"idle_for_s": None}, "NeverReady", "no replica has been ready"),
        ({"silent_pods": ("uid-1",)}, "MetricsUnavailable", "1 ready pods"),
        ({"silent_gateways": ("gw-a", "gw-b")}, "GatewayUnavailable", "gw-a, gw-b"),
        ({"since_last_wake_s": 599.0}, "RecentlyWoken", "woken 599 s ago, idleAfter is 600 s"),
    ],
)
def test_each_blocker_alone_keeps_it_from_zero_and_says_why(change, blocked_by, said):
    decision = decide(replace(IDLE, **change))

    assert not decision.to_zero
    assert decision.blocked_by == blocked_by
    assert said in decision.reason


def test_a_wake_of_exactly_idle_after_ago_no_longer_blocks():
    assert decide(replace(IDLE, since_last_wake_s=600.0)).to_zero


@given(
    idle_for_s=st.none() | st.floats(0, 1e6),
    since_last_wake_s=st.none() | st.floats(0, 1e6),
    held=st.integers(0, 5),
    min_replicas=st.integers(0, 2),
    replicas=st.integers(0, 4),
    idle_after_s=st.floats(1, 1e5),
)
def test_zero_is_written_only_when_nothing_at_all_speaks_against_it(
    idle_for_s, since_last_wake_s, held, min_replicas, replicas, idle_after_s
):
    idleness = Idleness(idle_for_s=idle_for_s, since_last_wake_s=since_last_wake_s, held=held)

    decision = decide_zero(min_replicas=min_replicas, replicas=replicas, idle_after_s=idle_after_s, idleness=idleness)

    expected = (
        min_replicas == 0
        and replicas > 0
        and held == 0
        and idle_for_s is not None
        and idle_for_s >= idle_after_s
        and (since_last_wake_s is None or since_last_wake_s >= idle_after_s)
    )
    assert expected == decision.to_zero
    assert decision.reason
