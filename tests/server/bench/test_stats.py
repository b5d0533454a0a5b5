"""Percentiles against numpy, histograms and the table."""

from __future__ import annotations

import numpy as np
import pytest

from octavo_server.bench.stats import Measure, histogram, of_rounds, percentile, table

VALUES = [0.004, 0.001, 0.003, 0.002, 0.009]


@pytest.mark.parametrize("percent", [0, 50, 90, 95, 99, 100])
def test_percentiles_are_numpys(percent: float) -> None:
    assert percentile(sorted(VALUES), percent) == pytest.approx(np.percentile(VALUES, percent))


def test_there_is_no_percentile_of_nothing() -> None:
    assert percentile([], 50) is None
    assert Measure(unit="ms", better="lower", rounds=[]).as_json()["p99"] is None


def test_a_measure_keeps_what_it_is_of() -> None:
    found = Measure(unit="ms", better="lower", rounds=[[[1.0], [2.0, 4.0]], [[3.0]]]).as_json()

    assert (found["p50"], found["mean"], found["max"]) == (2.5, 2.5, 4.0)
    assert found["rounds"] == [[[1.0], [2.0, 4.0]], [[3.0]]]
    assert of_rounds([5.0, 7.0], "tok/s", "higher").values == [5.0, 7.0]


def test_a_histogram_counts_between_powers_of_two() -> None:
    assert histogram([1, 2, 3, 4, 5, 8, 9, 128, 129]) == {
        "0-1": 1, "2-2": 1, "3-4": 2, "5-8": 2, "9-16": 1, "65-128": 1, "129-256": 1,
    }  # fmt: skip


def test_a_table_lines_its_columns_up() -> None:
    assert table(("a", "long"), [[1, 2.25], [None, "x"]]).splitlines() == ["a  long", "1   2.2", "-     x"]
