"""The GPU report at toy sizes on a CPU: all its logic, no speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import ROOT
from benchmarks.gpu_report import __main__ as command
from benchmarks.gpu_report import parts, roofline
from benchmarks.gpu_report.engine_speed import begin_decoding
from benchmarks.gpu_report.kernel_checks import CASES
from benchmarks.gpu_report.models import SHAPES, TINY, Model, greedy, prompts
from benchmarks.gpu_report.process import apart
from benchmarks.gpu_report.record import Figure, PartRecord, check, read_record
from benchmarks.gpu_report.table import BARS, report
from octavo_kernels.torch_backend import TorchBackend
from octavo_testing.absent import link_packages

PRESENT = (
    *("torch", "triton", "transformers", "safetensors", "aiohttp", "prometheus-client", "numpy"),
    *("pytest", "hypothesis"),
)
"""All that is on the machines that the report runs on, beside what these require."""
ABSENT = ("numba", "msgspec", "rich", "gguf", "llguidance", "kopf", "kubernetes", "psutil", "accelerate", "obstore")

ON_A_GPU_ALONE = {
    ("start-up", "cold: kernels compiled after ready"),
    ("kernels", "prefill attention, 1 x 8192"),
    ("kernels", "prefill attention, 4 x 2048"),
}
"""Aims whose figure has another name at toy sizes, or none."""


def test_each_part_fills_its_figures_at_toy_sizes_where_nothing_else_is_installed(tmp_path: Path) -> None:
    names = ["limits", "kernel-checks", "model-checks", "kernels", "transformers", "start-up", "engine-qwen3-0.6b"]
    packages = tmp_path / "packages"
    packages.mkdir()
    link_packages(PRESENT, packages, without=["rich"])
    for name in names:
        PartRecord(part=name, path=tmp_path / f"{name}.json", is_tiny=True).save()
    # What it starts is to miss the same packages.
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    script = (
        f"import sys, importlib.util; assert not any(map(importlib.util.find_spec, {ABSENT!r})); "
        f"from benchmarks.gpu_report.parts import main; sys.executable = {str(bare)!r}; "
        f"sys.exit(sum(main([f'{tmp_path}/{{name}}.json', '100']) for name in {names!r}))"
    )
    paths = [packages, ROOT, *(ROOT / folder for folder in ("kernels", "server", "tests"))]
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}

    done = subprocess.run(
        [sys.executable, "-S", "-c", script], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )

    records = {name: read_record(tmp_path / f"{name}.json") for name in names}
    assert done.returncode == 0, "\n".join(record.error for record in records.values() if record)
    figures = {name: [figure.name for figure in record.figures] for name, record in records.items() if record}
    assert figures["limits"] == ["copy", "bf16 product"]
    assert len(figures["kernel-checks"]) == len(CASES) + 4
    assert len(figures["model-checks"]) == 12
    assert "decode attention, skewed" in figures["kernels"]
    assert "own linear, 1 rows, against cuBLAS" in figures["kernels"]
    assert figures["transformers"][-1] == "ours against transformers"
    assert "linear of 4 bits, 2 rows" in figures["kernels"]
    assert {"cold: ready", "warm: loading_weights", "warm: ready", "warm: first answer", "warm: warming_up"} <= set(
        figures["start-up"]
    )
    assert figures["engine-qwen3-0.6b"][-2:] == ["ragged", "saturation"]
    absent = "\n".join(records["engine-qwen3-0.6b"].absent) if records["engine-qwen3-0.6b"] else ""
    assert all(what in absent for what in ("CUDA graphs: ", "fp8 weights: ", "int4 weights: "))
    measured = {(part, name) for part, names in figures.items() for name in names}
    command.write_report(tmp_path)
    assert roofline.main([str(tmp_path)]) == 0
    assert "decode attention, 64 x 4k: " in (tmp_path / "roofline.svg").read_text()
    assert {key for key in BARS if key[0] in figures} - measured <= ON_A_GPU_ALONE


def test_a_part_is_run_once_and_again_only_where_it_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path), "--only", "limits", "--tiny"]

    assert command.main([*arguments, "--budget", "0.01"]) == 1
    assert "all that it had" in (tmp_path / "report.md").read_text()
    assert command.main(arguments) == 0
    capsys.readouterr()
    assert command.main(arguments) == 0

    assert "limits: done before" in capsys.readouterr().out
    whole = json.loads((tmp_path / "report.json").read_text())
    assert [part["status"] for part in whole["parts"]] == ["done"]


def test_a_part_that_raises_is_recorded_with_its_traceback_and_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(record: PartRecord, *_: object) -> None:
        record.figure("copy", 5.0, "GB/s")
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(parts, "run_part", fails)
    path = tmp_path / "limits.json"
    PartRecord(part="limits", path=path, is_tiny=True).save()

    assert parts.main([str(path), "10"]) == 1

    record = read_record(path)
    assert record is not None
    assert record.status == "failed"
    assert [figure.value for figure in record.figures] == [5.0]
    assert "the device is lost" in record.error


@pytest.mark.parametrize("error", [0.2, float("nan")])
def test_a_check_that_does_not_hold_is_no_success(tmp_path: Path, error: float) -> None:
    record = PartRecord(part="kernel-checks", path=tmp_path / "a.json", is_tiny=False, status="done")
    record.add(check("rms_norm", error=0.1, tolerance=0.1))
    assert record.is_good

    record.add(check("rotary", error=error, tolerance=0.1))

    assert not record.is_good
    assert "WRONG" in report([record], {"kernel-checks": "Checks"})


def test_a_check_that_raises_is_recorded_and_those_after_it_are_made(tmp_path: Path) -> None:
    def checks(name: str) -> list[Figure]:
        if name == "rotary":
            raise RuntimeError("an illegal\n  memory access")
        return [check(name, error=0, tolerance=0)]

    record = PartRecord(part="kernel-checks", path=tmp_path / "a.json", is_tiny=False, status="done")
    for name, found in apart(checks, ["rms_norm", "rotary", "store_kv"], torch.device("cpu")):
        record.take(name, found)

    told = [(figure.name, figure.is_right, figure.note) for figure in record.figures]
    broken = ("rotary", False, "RuntimeError: an illegal memory access")
    assert told == [("rms_norm", True, "at most 0"), broken, ("store_kv", True, "at most 0")]
    assert not record.is_good


def test_on_a_gpu_each_check_is_a_process_and_one_that_dies_of_its_own_ends_no_other() -> None:
    found = dict(apart(process_of, ["a", "b", "broken", "c"], torch.device("cuda", 0)))

    assert isinstance(found.pop("broken"), RuntimeError)
    assert len({*found.values(), os.getpid()}) == 4


def process_of(name: str) -> int:
    if name == "broken":
        raise RuntimeError("the device is lost")
    return os.getpid()


@pytest.mark.parametrize(("value", "verdict", "shown"), [(245, "held", "245"), (244, "MISSED", "244 MISSED")])
def test_a_figure_stands_beside_its_bar(tmp_path: Path, value: float, verdict: str, shown: str) -> None:
    figures = [Figure(name="decode 1", value=value, unit="tok/s")]
    record = PartRecord(part="engine-llama-8b", path=tmp_path / "a.json", is_tiny=False, figures=figures)

    text = report([record], {"engine-llama-8b": "Engine"})

    assert f"≥ 245 tok/s {verdict}" in text
    assert f"| Llama 8B, bf16, batch 1, short context | ≥ 245 tok/s | {shown} |" in text


def test_an_aim_that_nothing_measured_is_in_the_table_and_says_so(tmp_path: Path) -> None:
    toy = PartRecord(part="engine-llama-8b", path=tmp_path / "a.json", is_tiny=True)
    toy.figures.append(Figure(name="decode 1", value=9.0, unit="tok/s"))

    text = report([toy], {"engine-llama-8b": "Engine"})

    for bar in BARS.values():
        assert f"| {bar.what} | {bar} | not measured" in text


def test_all_parts_together_fit_into_nine_minutes() -> None:
    assert sum(part.budget_s for part in parts.PARTS.values()) <= command.WITHIN_S < 9 * 60


def test_shapes_and_precisions_are_all_measured_somewhere() -> None:
    measured = {
        (part.shape, precision)
        for part in parts.PARTS.values()
        if isinstance(part, parts.EnginePart)
        for precision in (part.quantization, *part.also)
    }

    assert measured == {(shape, precision) for shape in SHAPES for precision in ("none", "fp8", "int4")}


def test_a_part_that_does_not_exist_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--out", str(tmp_path), "--only", "limit"])

    assert "'limit' is no part; choose from kernel-checks" in capsys.readouterr().err


@pytest.fixture
def model() -> Model:
    return Model.of(TINY["llama-8b"], "device", TorchBackend(torch.device("cpu")), torch.float32)


def test_sequences_that_were_timed_are_stopped_and_not_run_to_their_end(model: Model) -> None:
    model.start(num_blocks=40, max_num_seqs=2)
    begun = begin_decoding(model, 2, 8, 2)
    assert model.step() == 2

    model.stop(begun)

    assert not model.scheduler.has_work


def test_a_batch_that_the_cache_cannot_hold_at_once_is_told_of(model: Model) -> None:
    model.start(num_blocks=5, max_num_seqs=2)

    with pytest.raises(RuntimeError, match="2 sequences of 40 tokens never decoded together"):
        begin_decoding(model, 2, 40, 2)


def test_steps_that_overlap_give_the_tokens_of_steps_one_after_another(model: Model) -> None:
    def answers(*, overlaps: bool) -> list[list[int]]:
        model.start(num_blocks=60, max_num_seqs=8)
        if overlaps:
            # as on a GPU
            model.runner.keep_resident(8)
            model.scheduler.config = replace(model.scheduler.config, overlaps=True)
        ids = [model.add(prompt, greedy(6)).sequence_id for prompt in prompts(5, 9, model.config.vocab_size)]
        first = model.step()
        assert first == (0 if overlaps else 5), "the first step's tokens come with the second"
        model.run()
        return [[token.token_id for token in model.sampled[sequence_id]] for sequence_id in ids]

    assert answers(overlaps=True) == answers(overlaps=False)
    assert not model.has_work
