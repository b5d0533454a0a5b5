"""The KV cache's waste: under the bar in blocks of 16, far above it without blocks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import kv_waste


def test_waste_on_chat_lengths_is_under_4_percent(
    capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    waste = kv_waste.measure(400)

    record_property("kv_waste", round(waste.blocks, 4))
    record_property("contiguous_waste", round(waste.contiguous, 4))
    with capsys.disabled():
        print(f"\nKV waste, chat-like mix: blocks of 16 {waste.blocks:.1%}, whole contexts {waste.contiguous:.1%}")  # noqa: T201
    assert 0.001 < waste.blocks < 0.04
    assert waste.contiguous > 0.5


def test_waste_follows_the_block_size_and_the_seed() -> None:
    """A block's mean waste is half a block a sequence, so it grows in proportion."""
    small, large = kv_waste.measure(100), kv_waste.measure(100, block_size=64)

    assert kv_waste.measure(100) == small
    assert kv_waste.measure(100, seed=3) != small
    assert 3 < large.blocks / small.blocks < 5


def test_the_command_prints_both_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "waste.json"

    assert kv_waste.main(["--requests", "50", "--block-sizes", "16,32", "--json", str(path)]) == 0

    printed, record = capsys.readouterr().out, json.loads(path.read_text())
    assert [row["block_size"] for row in record["results"]] == [16, 32]
    assert f"{record['results'][0]['blocks']:.1%}" in printed
    assert f"{record['results'][0]['contiguous']:.1%}" in printed
    assert len(record["commit"]) == 40
