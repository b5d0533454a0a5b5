"""What a step takes beside weights and cache, computed, against what torch and numpy then allocate at most."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from octavo_kernels.batches import AttentionBatch
from octavo_server.capacity import LOGIT_COPIES, StepWidths, activation_bytes
from octavo_server.config import EngineConfig
from octavo_server.engine.model_runner import DecoderRunner
from octavo_server.models.loader import load_model
from octavo_server.plan.layout import choose_layout, step_widths
from octavo_server.plan.source import parse_shape
from octavo_testing.model_shapes import SMALL_LLAMA, SMALL_QWEN3_MOE, a_config

NUM_TOKENS = 512
WIDE_MLP = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2}
WIDE_ATTENTION = {**WIDE_MLP, "intermediate_size": 256, "num_attention_heads": 16, "num_key_value_heads": 16}
SIZES = {
    "wide mlp": WIDE_MLP | {"head_dim": 32},
    "wide attention": WIDE_ATTENTION | {"head_dim": 64},
}


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that tensors and arrays made during `run` took: numpy's peak in a first run, torch's in a second."""
    tracemalloc.start()
    run()
    arrays = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    assert record.profiler is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most + arrays


def a_runner(folder: Path, sizes: dict[str, Any], **settings: Any) -> tuple[DecoderRunner, StepWidths, str, int]:
    """A runner that has run once, so that nothing of it is made the first time; widths, backend and bytes of an element."""
    values = {**SMALL_LLAMA, **sizes, "num_hidden_layers": 2}
    model = load_model(a_config(folder, values), load_format="dummy", **settings)
    runner = DecoderRunner(model.decoder, model.kv_cache_spec(128, 16))
    # what other threads of an operation free, the profiler does not always tell
    torch.set_num_threads(1)
    runner.warm_up(4, 1)
    shape = parse_shape(values, source="x")
    layout = choose_layout(EngineConfig(model="x", **settings), stored_dtype=shape.dtype, kind="cpu")
    return runner, step_widths(shape, layout), layout.backend, layout.item_bytes


def a_chunk(runner: DecoderRunner, num_tokens: int, context: int) -> None:
    """The last `num_tokens` of a prompt of `context` tokens."""
    blocks = -(-context // 16)
    batch = AttentionBatch(
        query_start_loc=torch.tensor([0, num_tokens], dtype=torch.int32),
        seq_lens=torch.tensor([context], dtype=torch.int32),
        # not in order, so that keys and values are gathered
        block_tables=torch.arange(blocks, 0, -1, dtype=torch.int32)[None],
        slot_mapping=torch.full((num_tokens,), -1, dtype=torch.int64),
        max_query_len=num_tokens,
        max_seq_len=context,
    )
    positions = torch.arange(context - num_tokens, context)
    with torch.inference_mode():
        runner.decoder.forward(torch.zeros_like(positions), positions, batch, runner.kv_cache, torch.tensor([0]))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("settings", [{}, {"dtype": "bfloat16"}, {"quantization": "int8"}], ids=["f32", "bf16", "int8"])
def test_a_prefill_takes_what_is_computed(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    runner, widths, backend, itemsize = a_runner(tmp_path, SIZES[name], **settings)

    measured = peak_bytes(lambda: a_chunk(runner, NUM_TOKENS, NUM_TOKENS))

    # The first chunk of a prompt needs no mask and gathers nothing.
    computed = activation_bytes(
        widths, backend=backend, num_tokens=NUM_TOKENS, num_rows=1, context=0, itemsize=itemsize
    )
    assert measured == pytest.approx(computed, rel=0.15)


@pytest.mark.parametrize("name", SIZES)
def test_a_chunk_of_a_long_prompt_takes_its_mask_and_its_keys_too(tmp_path: Path, name: str) -> None:
    runner, widths, backend, itemsize = a_runner(tmp_path, SIZES[name])

    measured = peak_bytes(lambda: a_chunk(runner, 128, 1920))

    computed = activation_bytes(widths, backend=backend, num_tokens=128, num_rows=1, context=1920, itemsize=itemsize)
    assert measured == pytest.approx(computed, rel=0.15)


@pytest.mark.parametrize("num_chosen", [1, 3])
@pytest.mark.parametrize("settings", [{}, {"dtype": "bfloat16"}, {"quantization": "int8"}], ids=["f32", "bf16", "int8"])
def test_a_prefill_through_experts_takes_no_more_than_is_computed(
    tmp_path: Path, settings: dict[str, Any], num_chosen: int
) -> None:
    """All tokens are one, and so choose the same experts, which is the most that a step can take."""
    sizes = {**SMALL_QWEN3_MOE, "mlp_only_layers": [], "moe_intermediate_size": 512}
    sizes["num_experts_per_tok"] = num_chosen
    runner, widths, backend, itemsize = a_runner(tmp_path, sizes, **settings)

    measured = peak_bytes(lambda: a_chunk(runner, NUM_TOKENS, NUM_TOKENS))

    computed = activation_bytes(
        widths, backend=backend, num_tokens=NUM_TOKENS, num_rows=1, context=0, itemsize=itemsize
    )
    assert 0.4 * computed < measured < computed


def test_experts_on_a_gpu_leave_their_parts_in_float32() -> None:
    widths = StepWidths(hidden=64, qkv=24, attention=8, kv=16, inner=16, vocab=10, experts_per_token=4)

    computed = activation_bytes(widths, backend="triton", num_tokens=5, num_rows=1, context=0, itemsize=2)

    assert computed == 5 * ((3 * 64 + 16) * 2 + 4 * 64 * 4) + 10 * 4 * LOGIT_COPIES


def test_logits_of_many_rows_count_where_they_are_more_than_layers() -> None:
    """On a GPU, whose allocator keeps what the layers left, they count beside those."""
    widths = StepWidths(hidden=8, qkv=24, attention=8, kv=16, inner=16, vocab=100_000)
    logits = 64 * 100_000 * 4 * LOGIT_COPIES

    on_cpu = [
        activation_bytes(widths, backend=backend, num_tokens=64, num_rows=64, context=0, itemsize=4)
        for backend in ("torch", "numba")
    ]
    on_gpu = activation_bytes(widths, backend="triton", num_tokens=64, num_rows=64, context=0, itemsize=2)

    assert on_cpu == [logits, logits]
    assert on_gpu == logits + 64 * (2 * 8 + 3 * 16) * 2
