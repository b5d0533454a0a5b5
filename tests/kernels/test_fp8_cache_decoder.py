"""`--kv-cache-dtype fp8`: a whole decoder against transformers with keys and values rounded by torch, and what it allocates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from octavo_kernels.triton_backend import TritonBackend
from octavo_server.config import EngineConfig
from octavo_server.engine import build
from octavo_server.engine.build import build_engine
from octavo_server.engine.startup import StartupProgress
from octavo_server.errors import StartupError
from octavo_server.models import loader
from octavo_server.models.loader import load_model
from octavo_server.plan.gpus import find_gpu
from octavo_server.plan.table import table
from octavo_testing.checkpoints import EVEN, a_checkpoint, oracle_logprobs, prompt_tokens
from octavo_testing.held_bytes import held_bytes
from octavo_testing.ranks import parts_of
from octavo_testing.stepping import Generated, Stepper

FP8 = torch.float8_e4m3fn
SIZES = {**EVEN, "num_hidden_layers": 2}
VARIANTS = {
    "norms of q and k": ("Qwen3ForCausalLM", {"head_dim": 24}),
    "a window": ("MistralForCausalLM", {"sliding_window": 9}),
}
TOLERANCE = 2e-3
"""Nats. Of 16,000 numbers one may lie so near between two codes that the order of a sum decides which it becomes."""


@pytest.fixture
def triton(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has models loaded for a GPU's kernels, which run under the interpreter where there is none."""
    chosen = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
    monkeypatch.setattr(loader, "select_backend", lambda _device, **_: TritonBackend(chosen))


@pytest.fixture
def rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has transformers attend over keys and values as 8 bits hold them."""
    attend = torch.nn.functional.scaled_dot_product_attention

    def attend_rounded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **how: object) -> torch.Tensor:
        return attend(query, key.to(FP8).to(key.dtype), value.to(FP8).to(value.dtype), **how)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend_rounded)


def off_by(found: list[Generated], model: object) -> float:
    """The largest difference of a log-probability, nats; every token must be the oracle's likeliest."""
    largest = 0.0
    for item in found:
        expected = oracle_logprobs(model, item.prompt_ids + item.token_ids)
        first = len(item.prompt_ids) - 1
        assert item.token_ids == expected[first:-1].argmax(dim=-1).tolist()
        mine = [scored.logprob.logprob for scored in item.prompt_logprobs]
        mine += [token.logprob.logprob for token in item.tokens if token.logprob is not None]
        told = expected[:-1].gather(1, torch.tensor(item.prompt_ids[1:] + item.token_ids)[:, None])[:, 0]
        assert len(mine) == len(told)
        largest = max(largest, float((torch.tensor(mine) - told).abs().max()))
    return largest


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_decoder_over_8_bits_is_transformers_with_rounded_keys_and_values(
    variant: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Prefills and decodes together; without the rounding the difference is far larger, so that it shows something."""
    architecture, more = VARIANTS[variant]
    checkpoint = a_checkpoint(tmp_path, architecture, SIZES, **more)
    stepper = Stepper(load_model(checkpoint.path).keeping("fp8"))

    found = stepper.generate(
        [prompt_tokens(20, 512), prompt_tokens(7, 512)], max_tokens=4, prompt_logprobs=0, logprobs=0
    )

    exact = [oracle_logprobs(checkpoint.model, item.prompt_ids) for item in found]
    request.getfixturevalue("rounded")
    assert off_by(found, checkpoint.model) < TOLERANCE
    coarse = [oracle_logprobs(checkpoint.model, item.prompt_ids) for item in found]
    assert max(float((a - b).abs().max()) for a, b in zip(exact, coarse, strict=True)) > 20 * TOLERANCE


@pytest.mark.usefixtures("triton")
def test_chunks_prefix_hits_and_preemption_change_nothing(tmp_path: Path) -> None:
    """What is attended to is always what the cache holds, never what has just been computed."""
    path = a_checkpoint(tmp_path, "Qwen2ForCausalLM", SIZES).path
    prompt = prompt_tokens(20, 512)
    loaded = load_model(path).keeping("fp8")
    (alone,) = Stepper(loaded).generate([prompt], max_tokens=4)

    (in_chunks,) = Stepper(loaded, max_num_batched_tokens=6).generate([prompt], max_tokens=4)
    stepper = Stepper(loaded, enable_prefix_caching=True, block_size=4)
    stepper.generate([prompt], max_tokens=1)
    (after_a_hit,) = stepper.generate([prompt], max_tokens=4)
    crowded = Stepper(loaded, num_blocks=11, block_size=4)
    both = crowded.generate([prompt, prompt], max_tokens=4)

    assert alone.token_ids == in_chunks.token_ids == after_a_hit.token_ids
    assert after_a_hit.sequence.num_cached_tokens == 16
    assert both[1].sequence.num_preemptions > 0
    assert [item.token_ids for item in both] == [alone.token_ids] * 2


@pytest.mark.usefixtures("triton")
def test_an_engine_allocates_what_its_table_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = a_checkpoint(tmp_path, "Qwen3ForCausalLM", {**SIZES, "num_hidden_layers": 1})
    monkeypatch.setattr(build, "this_device", lambda *_, **__: find_gpu("L4"))
    monkeypatch.setattr(build, "gpu_overhead_bytes", lambda _known: 0)
    settings: dict[str, Any] = {"kv_cache_memory_bytes": 2**20, "enforce_eager": True, "load_format": "dummy"}
    config = EngineConfig(model=str(checkpoint.path), kv_cache_dtype="fp8", device="cpu", dtype="float32", **settings)

    loaded = build_engine(config, StartupProgress())

    memory, cache = loaded.memory, loaded.engine._runner.kv_cache  # type: ignore[attr-defined]  # of a DecoderRunner
    assert memory is not None
    assert "a token in float8_e4m3fn (--kv-cache-dtype)" in table(memory)
    # and a scale of float32 for each head of a layer, which keys and values share
    assert held_bytes(cache) == memory.kv_bytes + 4 * SIZES["num_key_value_heads"]
    assert memory.kv_bytes <= 2**20 < memory.kv_bytes + memory.kv_shape.block_bytes
    assert loaded.resolved["kv_dtype"] == memory.layout.kv_dtype == "float8_e4m3fn"
    assert memory.kv_shape.token_bytes == load_model(checkpoint.path).keeping("fp8").kv_bytes_per_token


@pytest.mark.usefixtures("triton")
def test_each_of_several_ranks_keeps_its_heads_in_8_bits(tmp_path: Path) -> None:
    checkpoint = a_checkpoint(tmp_path, "LlamaForCausalLM", SIZES)

    parts = parts_of(checkpoint.path, 2)

    specs = [part.keeping("fp8").kv_cache_spec(4, 16) for part in parts]
    assert [(spec.dtype, spec.num_kv_heads) for spec in specs] == [(FP8, 1)] * 2


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_on_a_cpu_it_is_refused_before_weights_are_read(tmp_path: Path, quantization: str) -> None:
    path = a_checkpoint(tmp_path, "LlamaForCausalLM", SIZES).path
    config = EngineConfig(model=str(path), kv_cache_dtype="fp8", device="cpu", quantization=quantization)  # type: ignore[arg-type]  # parametrised
    progress = StartupProgress()

    with pytest.raises(StartupError, match="of GPUs alone; on a CPU leave it out") as caught:
        build_engine(config, progress)

    assert (caught.value.reason, progress.stage) == ("SpecInvalid", "starting")
    with pytest.raises(StartupError, match="of GPUs alone"):
        load_model(path, quantization=quantization).keeping("fp8")
