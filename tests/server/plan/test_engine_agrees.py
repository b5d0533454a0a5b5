"""What is planned from config.json alone, against what an engine of random weights then holds, counted tensor by tensor."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Kind

from octavo_server.config import EngineConfig
from octavo_server.engine.build import build_engine
from octavo_server.engine.engine import Engine
from octavo_server.engine.model_runner import DecoderRunner
from octavo_server.engine.startup import StartupProgress
from octavo_server.models.loader import LoadedModel, load_model
from octavo_server.plan.command import plan_model
from octavo_server.plan.memory import MemoryPlan
from octavo_testing.checkpoints import EVEN, a_model
from octavo_testing.gguf_files import RandomModel, write_gguf
from octavo_testing.held_bytes import held_bytes
from octavo_testing.model_shapes import SMALL_LLAMA, SMALL_MIXTRAL, SMALL_QWEN3, SMALL_QWEN3_MOE, a_config

SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int4": {"quantization": "int4"},
    "int8": {"quantization": "int8"},
}


def runner_of(engine: Engine) -> DecoderRunner:
    runner = engine._runner
    assert isinstance(runner, DecoderRunner)
    return runner


def planned(config: EngineConfig) -> MemoryPlan:
    return plan_model(dataclasses.replace(config, load_format="auto"), gpu="cpu").memory


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    "sizes",
    [SMALL_LLAMA, SMALL_QWEN3, SMALL_QWEN3_MOE, SMALL_MIXTRAL],
    ids=["llama", "qwen3", "qwen3-moe", "mixtral"],
)
def test_the_plan_is_what_the_engine_allocates(tmp_path: Path, sizes: dict[str, Any], setting: str) -> None:
    """The bar is 5 %, 0.04 % were measured."""
    folder = a_config(tmp_path, sizes)
    config = EngineConfig(
        model=str(folder), load_format="dummy", kv_cache_memory_bytes=2**24, device="cpu", **SETTINGS[setting]
    )

    plan = planned(config)
    loaded = build_engine(config, StartupProgress())

    runner = runner_of(loaded.engine)
    assert plan.weight_bytes + plan.rotary_bytes == pytest.approx(held_bytes(runner.decoder.weights), rel=0.01)
    assert plan.kv_bytes == pytest.approx(held_bytes(runner.kv_cache), rel=0.01)
    assert plan.kv is not None
    assert runner.kv_cache.spec.num_blocks == plan.kv.num_blocks
    assert loaded.engine.limits.max_sequence_tokens == plan.kv.max_model_len
    # and the table of the start says the same
    assert loaded.memory is not None
    assert loaded.memory.kv == plan.kv
    assert loaded.memory.weight_bytes == pytest.approx(plan.weight_bytes, rel=0.01)


@pytest.mark.parametrize(("block_size", "head_dim"), [(5, 64), (16, 40), (24, 24)])
def test_a_cache_in_whole_vectors_stays_within_its_budget(tmp_path: Path, block_size: int, head_dim: int) -> None:
    """The compiled kernels fill blocks and heads up to 16, which is up to three times what is used."""
    folder = a_config(tmp_path, SMALL_LLAMA, head_dim=head_dim, num_attention_heads=8, num_hidden_layers=1)
    config = EngineConfig(
        model=str(folder),
        load_format="dummy",
        kv_cache_memory_bytes=2**22,
        block_size=block_size,
        quantization="int8",
        device="cpu",
    )

    plan = planned(config)
    held = held_bytes(runner_of(build_engine(config, StartupProgress()).engine).kv_cache)

    assert plan.kv_bytes == held <= 2**22


@pytest.mark.parametrize("kind", [Kind.F16, Kind.Q4_0, Kind.Q8_0])
@pytest.mark.parametrize("quantization", ["none", "int4", "int8"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_blocks_of_a_gguf_file_are_planned_as_they_are_kept(
    tmp_path: Path, kind: Kind, quantization: str, is_tied: bool
) -> None:
    """Those of q are Q8_0: q, k and v are one matrix, which then has 8 bits."""
    model = RandomModel({**SMALL_LLAMA, "num_hidden_layers": 1, "tie_word_embeddings": is_tied})
    write_gguf(tmp_path / "model.gguf", model, "llama", kind, other_kinds={"q_proj": Kind.Q8_0})

    plan = planned(EngineConfig(model=str(tmp_path / "model.gguf"), quantization=quantization))  # type: ignore[arg-type]
    loaded = load_model(tmp_path / "model.gguf", quantization=quantization)

    assert plan.weight_bytes + plan.rotary_bytes == pytest.approx(held_bytes(loaded.decoder.weights), rel=0.002)


def test_blocks_of_experts_are_planned_as_they_are_kept(tmp_path: Path) -> None:
    """Those of up are Q8_0, so that an expert's gate and up together have 8 bits."""
    model = a_model("MixtralForCausalLM", {**EVEN, "num_hidden_layers": 2, "intermediate_size": 256})
    write_gguf(tmp_path / "model.gguf", model, "llama", Kind.Q4_0, other_kinds={"up_proj": Kind.Q8_0})

    plan = planned(EngineConfig(model=str(tmp_path / "model.gguf"), quantization="int4"))
    loaded = load_model(tmp_path / "model.gguf", quantization="int4")

    assert plan.weight_bytes + plan.rotary_bytes == pytest.approx(held_bytes(loaded.decoder.weights), rel=0.002)


@pytest.mark.model
@pytest.mark.parametrize("quantization", ["none", "int4"])
def test_the_real_model_takes_what_was_planned(smollm2_path: Path, quantization: str) -> None:
    plan = planned(EngineConfig(model=str(smollm2_path), quantization=quantization))  # type: ignore[arg-type]
    loaded: LoadedModel = load_model(smollm2_path, quantization=quantization)

    assert plan.weight_bytes + plan.rotary_bytes == pytest.approx(held_bytes(loaded.decoder.weights), rel=0.01)
    assert plan.kv_shape.token_bytes == loaded.kv_bytes_per_token


def test_a_plan_needs_no_weights_and_no_torch(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    folder = a_config(tmp_path, SMALL_QWEN3)
    script = (
        "import sys; from octavo_server.cli import main; "
        f"status = main(['plan', {str(folder)!r}, '--gpu', 'H200', '--json']); "
        "print('torch' in sys.modules, file=sys.stderr); sys.exit(status)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, check=True)

    assert json.loads(done.stdout)["fits"] is True
    assert done.stderr.decode().strip() == "False"
