"""The shape's arithmetic against the model's own, and the command on a smaller one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import qwen05b
from benchmarks.llama_cpp import Case
from benchmarks.qwen05b import BARS, CONFIG, Limits

SMALL = {
    **CONFIG,
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qwen05b, "CONFIG", SMALL)
    monkeypatch.setattr(qwen05b, "READ_BYTES", 2**16)


def test_a_token_s_multiplications_are_the_parameters_of_the_published_model() -> None:
    """494,032,768 parameters, of which norms and biases are 76,672 and nothing else is multiplied by no matrix."""
    hidden, layers = CONFIG["hidden_size"], CONFIG["num_hidden_layers"]
    norms, biases = hidden * (2 * layers + 1), layers * (hidden + 2 * 128)

    assert qwen05b.multiplications_of(CONFIG) == 494_032_768 - norms - biases
    assert qwen05b.multiplications_of(CONFIG, has_head=False) == 494_032_768 - norms - biases - 151_936 * hidden


def test_bytes_are_those_that_are_kept() -> None:
    """A group of 32 in 8 bits is 34 bytes, in 4 bits 20; the head is never in less than 8."""
    head, rest = 512 * 64, qwen05b.multiplications_of(SMALL) - 512 * 64

    assert qwen05b.weight_bytes_of(SMALL, "none") == 4 * (head + rest)
    assert qwen05b.weight_bytes_of(SMALL, "int8") == (head + rest) * 34 // 32
    assert qwen05b.weight_bytes_of(SMALL, "int4") == head * 34 // 32 + rest * 20 // 32


@pytest.mark.parametrize(("batch", "expected"), [(1, 10.0), (4, 40.0), (32, 80.0)])
def test_the_limit_is_reading_for_few_and_multiplying_for_many(batch: int, expected: float) -> None:
    limits = Limits(read_bytes_s=1000.0, multiplications_s=4000.0)

    assert limits.tokens_s(Case(name="", batch=batch, prompt_tokens=9, steps=1), 100, 50) == expected
    assert limits.tokens_s(Case(name="", batch=1, prompt_tokens=32, steps=0), 100, 50) == 80.0


def test_every_case_is_measured_beside_its_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    names = ["--quantizations", "int4,none", "--batches", "1,3", "--prefill", "20", "--steps", "2", "--rounds", "1"]

    status = qwen05b.main([*names, "--threads", "1", "--json", str(tmp_path / "out.json")])
    torch.set_num_threads(threads)

    results = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["results"]
    found = [(item["quantization"], item["case"]["name"]) for item in results]
    assert status == 0
    assert found == [(name, case) for name in ("int4", "none") for case in ("decode 1", "decode 3", "prefill")]
    assert all(item["share"] == pytest.approx(item["rates"][0] / item["limit"]) for item in results)
    assert f"aim {BARS['none']['decode 1']:.0f}" in capsys.readouterr().out


def test_an_unknown_quantization_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        qwen05b.main(["--quantizations", "int3"])

    assert "'int3' must be one of int8, int4, none" in capsys.readouterr().err
