"""What serving costs: ratios within a round, and the command on a tiny model with both kinds of server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import server_overhead
from benchmarks.server_overhead import IN, OFFLINE, OUT, measure
from octavo_testing.server import a_tiny_model


def test_ratios_are_taken_within_each_round_of_the_same_prompts() -> None:
    """A machine that is half as fast in one round changes nothing."""
    asked: list[tuple[str, int]] = []

    def side(name: str, speed: float) -> object:
        def run(seed: int) -> float:
            asked.append((name, seed))
            return speed / (2 if seed == 1 else 1)

        return run

    rates = measure({OFFLINE: side(OFFLINE, 100.0), IN: side(IN, 90.0), OUT: side(OUT, 81.0)}, 3)

    assert [(name, seed) for seed in range(3) for name in (OFFLINE, IN, OUT)] == asked
    assert rates.ratio(IN, OFFLINE) == pytest.approx(0.9)
    assert rates.ratio(OUT, IN) == pytest.approx(0.9)


def test_the_command_measures_all_three_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, model = tmp_path / "overhead.json", a_tiny_model(tmp_path / "model")
    argv = [str(model), "-c", "2", "--rounds", "1", "--prompt-tokens", "8", "--max-tokens", "20", "--json", str(path)]

    status = server_overhead.main(argv)

    printed, record = capsys.readouterr().out, json.loads(path.read_text())
    assert status == (0 if record["in_to_offline"] >= server_overhead.BAR else 1)
    assert ("reached" in printed) == (status == 0)
    assert {OFFLINE, IN, OUT} == set(record["rates"])
    assert all(rates[0] > 0 for rates in record["rates"].values())
    assert f"engine out to in: {record['out_to_in']:.3f}" in printed
