"""The best ten seconds since the start."""

from __future__ import annotations

from octavo_server.throughput import Throughput


def test_the_best_window_counts_and_a_burst_of_one_step_does_not() -> None:
    seen = Throughput(0.0)

    seen.add(500, 1.0)
    assert seen.peak(9.0) == 0
    seen.add(500, 10.0)
    assert seen.peak(10.0) == 50
    seen.add(100, 21.0)
    assert seen.peak(1000.0) == 50
    seen.add(0, 1000.0)
    seen.add(2000, 1005.0)
    assert seen.peak(1010.0) == 200


def test_idle_time_within_a_window_is_no_speed() -> None:
    seen = Throughput(0.0)

    seen.add(1000, 1.0)

    assert seen.peak(100.0) == 10
