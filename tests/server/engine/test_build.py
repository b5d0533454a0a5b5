"""What is read off the machine before an engine is made."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import pytest

from octavo_server import machine
from octavo_server.config import EngineConfig
from octavo_server.engine import build
from octavo_server.engine.build import build_engine, cpu_quota, overlaps_steps
from octavo_server.engine.request import Request, SamplingParams
from octavo_server.engine.startup import StartupProgress
from octavo_server.errors import ConfigError, StartupError
from octavo_server.plan.command import plan_model
from octavo_server.plan.table import table


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (["200000 100000", "", ""], 2),
        (["50000 100000", "", ""], 1),
        (["350000 100000", "", ""], 3),
        (["max 100000", "", ""], None),
        (["", "400000", "100000"], 4),
        (["", "-1", "100000"], None),
        (["", "", ""], None),
    ],
)
def test_a_cgroups_processors_bound_the_threads(limits: list[str], expected: int | None) -> None:
    assert cpu_quota(limits) == expected


@pytest.mark.parametrize("given", [{"GOMP_SPINCOUNT": "5"}, {"OMP_WAIT_POLICY": "active"}])
def test_threads_spin_as_a_person_has_set(given: dict[str, str]) -> None:
    env = dict(given)

    build.bound_spinning(env)

    assert env == given


def test_threads_sleep_soon_because_it_is_said_before_torch_is_imported(tiny_model: Path) -> None:
    script = (
        "import os, sys\n"
        "from octavo_server import LLM\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch':\n"
        "            print(os.environ.get('GOMP_SPINCOUNT'), flush=True)\n"
        "            os._exit(0)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "LLM(sys.argv[1])\n"
    )
    env = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)

    done = subprocess.run([sys.executable, "-c", script, str(tiny_model)], env=env, capture_output=True, check=True)

    assert done.stdout.decode().strip() == str(build.OMP_SPINS)


def test_stages_are_walked_and_bytes_counted(tiny_model: Path) -> None:
    """A stage counts its own bytes: of the weights none is missing at their end, and warming up has none."""
    seen: list[tuple[str, int, int]] = []
    progress = StartupProgress(on_change=lambda now: seen.append((now.stage, now.bytes, now.total_bytes)))

    build_engine(EngineConfig(model=str(tiny_model), num_gpu_blocks_override=50), progress)

    assert list(progress.stage_seconds) == ["starting", "loading_weights"]
    assert progress.stage == "warming_up"
    done, total = [(done, total) for stage, done, total in seen if stage == "loading_weights"][-1]
    assert 0 < done == total
    assert (progress.bytes, progress.total_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("settings", "reason", "words"),
    [
        ({"max_model_len": 513}, "SpecInvalid", ("513", "512")),
        ({"num_gpu_blocks_override": 3, "max_model_len": 100}, "KVCacheTooSmall", ("100", "32")),
        ({"kv_cache_memory_bytes": 1}, "KVCacheTooSmall", ("--kv-cache-memory-bytes",)),
        ({"chat_template": "/nowhere.jinja"}, "SpecInvalid", ("/nowhere.jinja",)),
        ({"chat_template": "{% if %}"}, "ModelInvalid", ("template",)),
    ],
)
def test_what_cannot_be_built_says_why(
    tiny_model: Path, settings: dict[str, object], reason: str, words: tuple[str, ...]
) -> None:
    config = EngineConfig(model=str(tiny_model), **settings)  # type: ignore[arg-type]  # a table of fields

    with pytest.raises(StartupError) as caught:
        build_engine(config, StartupProgress())

    assert caught.value.reason == reason
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize(
    ("overlap_steps", "on_cpu", "on_gpu"), [("auto", False, True), ("off", False, False), ("on", True, True)]
)
def test_steps_overlap_on_gpus_unless_told_otherwise(overlap_steps: Any, on_cpu: bool, on_gpu: bool, ways: int) -> None:
    config = EngineConfig(model="x", overlap_steps=overlap_steps, tensor_parallel_size=ways)

    assert (overlaps_steps(config, is_cpu=True), overlaps_steps(config, is_cpu=False)) == (on_cpu, on_gpu)


@pytest.mark.parametrize(("overlap_steps", "num_steps"), [("auto", 3), ("off", 3), ("on", 4)])
def test_steps_overlap_where_they_are_told_to(tiny_model: Path, overlap_steps: Any, num_steps: int) -> None:
    """Then the first is launched alone, and the last is taken in alone; auto is off on a CPU."""
    engine = build_engine(EngineConfig(model=str(tiny_model), overlap_steps=overlap_steps), StartupProgress()).engine
    engine.add_request(a_request(max_tokens=3))

    tokens = []
    while engine.has_work:
        tokens.append(sum(len(delta.tokens) for delta in engine.step()))

    assert tokens == [0] * (num_steps - 3) + [1] * 3


def test_an_engine_tells_what_has_compiled_since_it_was_made(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = build_engine(EngineConfig(model=str(tiny_model)), StartupProgress(), keeps_records=True).engine
    numba.njit(lambda number: number + 1)(1)
    engine.add_request(a_request(max_tokens=1))

    engine.step()

    assert engine.take_records().num_compilations == 1
    assert "kernels were compiled while requests waited: <lambda>" in caplog.text


def a_request(**params: Any) -> Request:
    sampling = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, **params})
    return Request(request_id="a", prompt_token_ids=(5, 6, 7), params=sampling, arrival_s=0.0)


def test_a_small_cache_shrinks_the_context_that_nobody_asked_for(tiny_model: Path) -> None:
    config = EngineConfig(model=str(tiny_model), num_gpu_blocks_override=11)

    assert build_engine(config, StartupProgress()).engine.limits.max_sequence_tokens == 160


def test_weights_are_taken_from_the_machines_memory_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, weights = 8 * 2**20, 2 * 2**20
    available = memory

    class Model:
        num_weight_bytes = weights

        def __init__(self, model: object) -> None:
            self._model = model

        def __getattr__(self, name: str) -> object:
            return getattr(self._model, name)

    def load(*arguments: Any) -> Model:
        nonlocal available
        available = memory - weights
        return Model(load_model(*arguments))

    load_model = build._load_model
    monkeypatch.setattr(build, "_load_model", load)
    monkeypatch.setattr(
        machine, "read_text", lambda name: f"MemAvailable: {available // 1024} kB" * name.endswith("meminfo")
    )

    snapshot = build_engine(EngineConfig(model=str(tiny_model)), StartupProgress()).engine.snapshot()

    # 2 layers of keys and values, 2 heads of 16 float32 each, 16 tokens a block; one block is the null block.
    angles = 512 * 16 * 4
    assert snapshot.num_blocks == int(0.4 * (memory - weights - angles)) // (2 * 2 * 2 * 16 * 4 * 16) - 1


def test_the_start_logs_the_table_that_a_plan_prints(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = EngineConfig(model=str(tiny_model), num_gpu_blocks_override=50)

    with caplog.at_level("INFO", logger="octavo_server.engine.build"):
        loaded = build_engine(config, StartupProgress())

    # But for the memory that the machine has available, which changes.
    planned, logged = table(plan_model(config, gpu="cpu").memory), caplog.messages[-1]
    same = [line for line in planned.splitlines() if "%" not in line and " on CPU (" not in line]
    assert len(same) > 5
    assert all(line in logged for line in same), logged
    assert "with torch kernels" in logged
    assert re.search(r"idle memory of the engine's process: [\d.,]+ [MG]iB", logged)
    assert loaded.memory is not None
    assert table(loaded.memory) in logged


def test_a_gpu_that_is_not_there_is_refused(tiny_model: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match="finds no GPU"):
        build_engine(EngineConfig(model=str(tiny_model), device="cuda"), StartupProgress())
