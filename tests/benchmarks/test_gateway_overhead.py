"""What the gateway adds, by a benchmark that measures both sides in one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gateway_overhead
from benchmarks.gateway_overhead import Latencies, added, latencies, quantile


def a_round(first: float, whole: float = 100.0) -> Latencies:
    return Latencies(
        first_p50=first, first_p99=2 * first, whole_p50=whole, whole_p99=whole, requests_per_s=1000 / whole
    )


def test_what_is_added_is_the_median_of_the_rounds_own_differences() -> None:
    rounds = {
        "direct": [a_round(10), a_round(20), a_round(10)],
        "gateway": [a_round(11, 110), a_round(50, 120), a_round(13, 110)],
    }

    found = added(rounds)

    assert (found["added_first_p50_ms"], found["added_first_p99_ms"]) == (3, 6)
    assert found["whole_p50_ratio"] == pytest.approx(1.1)


def test_quantiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(100)]

    assert (quantile(values, 0.5), quantile(values, 0.99), quantile([7.0], 0.99)) == (50.0, 99.0, 7.0)
    assert latencies([0.001], [0.002], 0.5).requests_per_s == 2


def test_a_small_run_measures_both_sides_and_writes_what_it_found(tmp_path: Path) -> None:
    path = tmp_path / "found.json"

    gateway_overhead.main(
        [f"--json={path}", "--streams=3", "--requests=6", "--rounds=2", "--events=3", "--interval-ms=1"]
    )

    record = json.loads(path.read_text())
    assert [len(record["rounds"][side]) for side in gateway_overhead.SIDES] == [2, 2]
    assert record["settings"]["streams"] == 3
    assert 10 < record["found"]["gateway_memory_mib"] < 500
    assert set(record["bars"]) <= set(record["found"])
