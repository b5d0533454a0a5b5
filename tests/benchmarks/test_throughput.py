"""Throughput's figures: ratios within a round, bars that can be missed, and the command on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import throughput
from benchmarks.throughput import Series
from octavo_testing.server import a_tiny_model


def test_a_ratio_is_taken_within_each_round() -> None:
    """A machine that is half as fast in one round changes nothing."""
    series = Series(mode="none", rates={1: [10.0, 5.0, 10.0], 16: [41.0, 20.5, 41.0]})

    assert series.ratio(16) == pytest.approx(4.1)
    assert series.median(16) == 41.0
    assert series.reaches_its_bar
    assert not Series(mode="none", rates={1: [10.0], 16: [39.0]}).reaches_its_bar
    assert Series(mode="int4", rates={1: [10.0], 16: [26.0]}).reaches_its_bar
    assert not Series(mode="int4", rates={1: [10.0], 16: [24.0]}).reaches_its_bar


def test_the_command_prints_rates_ratios_and_where_the_time_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, model = tmp_path / "throughput.json", a_tiny_model(tmp_path / "model")
    argv = [str(model), "-c", "2", "--quantizations", "none", "--rounds", "2", "--prompt-tokens", "8"]

    assert throughput.main([*argv, "--max-tokens", "4", "--profile", "--json", str(path)]) == 0

    printed, record = capsys.readouterr().out, json.loads(path.read_text())
    (result,) = record["results"]
    assert result["mode"] == "float32"
    assert [len(rates) for rates in result["rates"].values()] == [2, 2]
    assert result["ratios"]["1"] == 1.0
    assert f"{result['ratios']['2']:.2f}" in printed
    shares = record["profile"]["float32 2"]
    assert sum(shares.values()) == pytest.approx(1, abs=0.001)
    assert shares["forward"] > 0.1
    assert min(shares.values()) >= 0
