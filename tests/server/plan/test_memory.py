"""What a plan says of one device, by arithmetic that a person can follow."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_server.config import EngineConfig
from octavo_server.errors import ConfigError
from octavo_server.plan.gpus import GIB, GPUS, Device
from octavo_server.plan.layout import choose_layout, step_widths, weight_sizes
from octavo_server.plan.memory import GPU_OVERHEAD_BYTES, Measured, MemoryPlan, plan_memory
from octavo_server.plan.source import parse_shape
from octavo_server.plan.table import loads
from octavo_testing.model_shapes import DEEPSEEK_V3, GEMMA3_4B_TEXT, LLAMA_8B, MIXTRAL_8X7B, QWEN3_06B

CPU = Device(name="CPU", kind="cpu", memory_bytes=64 * GIB)
H200 = GPUS["H200"]


def a_plan(
    values: dict[str, Any], device: Device = H200, *, ways: int = 1, measured: Measured | None = None, **settings: Any
) -> MemoryPlan:
    config = EngineConfig(model="x", **settings)
    shape = parse_shape(values, source="x")
    layout = choose_layout(config, stored_dtype=shape.dtype, kind=device.kind, ways=ways)
    return plan_memory(shape, layout, device, config, measured)


def kv_blocks(plan: MemoryPlan) -> int:
    assert plan.kv is not None
    return plan.kv.num_blocks


def test_a_gpus_cache_is_what_its_share_leaves() -> None:
    plan = a_plan(LLAMA_8B, gpu_memory_utilization=0.5)

    assert plan.overhead_bytes == GPU_OVERHEAD_BYTES
    left = H200.memory_bytes // 2 - plan.needed_bytes
    assert 0 <= left - plan.kv_bytes < plan.kv_shape.block_bytes
    assert plan.free_bytes == H200.memory_bytes - plan.needed_bytes - plan.kv_bytes


def test_what_an_engine_measured_stands_before_what_is_computed() -> None:
    plan = a_plan(LLAMA_8B, measured=Measured(weight_bytes=3 * GIB, overhead_bytes=GIB))

    assert (plan.weight_bytes, plan.overhead_bytes) == (3 * GIB, GIB)
    assert plan.kv_bytes > a_plan(LLAMA_8B).kv_bytes + 10 * GIB


def test_a_cpus_cache_is_the_default_of_the_server() -> None:
    assert a_plan(QWEN3_06B, CPU).kv_bytes == pytest.approx(4 * GIB, rel=0.001)
    small = Device(name="CPU", kind="cpu", memory_bytes=4 * GIB)
    plan = a_plan(QWEN3_06B, small)
    assert plan.kv_bytes == pytest.approx(0.4 * (4 * GIB - plan.weight_bytes - plan.rotary_bytes), rel=0.01)


@pytest.mark.parametrize("device", [CPU, H200], ids=["cpu", "gpu"])
def test_bytes_for_the_cache_win_over_a_share(device: Device) -> None:
    plan = a_plan(LLAMA_8B, device, kv_cache_memory_bytes=GIB)

    assert kv_blocks(plan) == GIB // plan.kv_shape.block_bytes


def test_blocks_win_over_bytes() -> None:
    assert kv_blocks(a_plan(LLAMA_8B, kv_cache_memory_bytes=GIB, num_gpu_blocks_override=77)) == 77


def test_a_larger_block_holds_as_many_tokens() -> None:
    small, large = a_plan(LLAMA_8B), a_plan(LLAMA_8B, block_size=64)

    assert large.kv is not None
    assert small.kv is not None
    assert large.kv.capacity_tokens == pytest.approx(small.kv.capacity_tokens, rel=0.001)
    assert kv_blocks(large) == pytest.approx(kv_blocks(small) / 4, rel=0.001)


def test_limits_are_those_of_the_server() -> None:
    """And more sequences or more tokens a step need more memory."""
    large, small = a_plan(LLAMA_8B).limits, a_plan(LLAMA_8B, GPUS["L4"]).limits

    assert (large.max_num_seqs, large.max_num_batched_tokens) == (1024, 8192)
    assert (small.max_num_seqs, small.max_num_batched_tokens) == (256, 2048)
    fewer = a_plan(LLAMA_8B, max_num_seqs=8, max_num_batched_tokens=512)
    assert fewer.activation_bytes < a_plan(LLAMA_8B).activation_bytes / 10


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(ConfigError, match="40961"):
        a_plan(QWEN3_06B, max_model_len=40_961)


def test_a_context_that_does_not_fit_is_a_problem_with_both_numbers() -> None:
    plan = a_plan(LLAMA_8B, GPUS["L4"], max_model_len=131_072)

    assert plan.kv is None
    assert not plan.fits
    assert "131,072 tokens needs 16,386.0 MiB" in plan.problem
    assert "--gpu-memory-utilization" in plan.problem
    assert (plan.largest_context, plan.kv_bytes, plan.concurrency(100), loads(plan)) == (0, 0, 0.0, [])


def test_a_context_that_nobody_asked_for_shrinks() -> None:
    plan = a_plan(LLAMA_8B, GPUS["L4"])

    assert plan.kv is not None
    assert plan.largest_context == plan.kv.max_model_len == plan.kv.capacity_tokens < 131_072


def test_graphs_of_a_context_that_shrinks_take_what_that_context_needs() -> None:
    """No more than where it is asked for; and not so little that one token more would fit."""
    auto = a_plan(LLAMA_8B, GPUS["L4"])

    assert auto.kv is not None
    asked = a_plan(LLAMA_8B, GPUS["L4"], max_model_len=auto.kv.max_model_len)
    assert (asked.graph_bytes, asked.kv) == (auto.graph_bytes, auto.kv)
    assert a_plan(LLAMA_8B, GPUS["L4"], max_model_len=auto.kv.max_model_len + 1).kv is None


def test_tensor_parallelism_deals_weights_and_heads() -> None:
    one, eight = a_plan(LLAMA_8B), a_plan(LLAMA_8B, ways=8)

    # norms stay whole on each
    assert one.weight_bytes / 8 < eight.weight_bytes < one.weight_bytes / 8 * 1.001
    assert eight.kv_shape.token_bytes == one.kv_shape.token_bytes // 8
    assert step_widths(eight.model, eight.layout).qkv == step_widths(one.model, one.layout).qkv // 8


def test_key_value_heads_are_repeated_where_there_are_fewer_than_devices() -> None:
    eight, sixteen = a_plan(LLAMA_8B, ways=8), a_plan(LLAMA_8B, ways=16)

    assert sixteen.kv_shape.token_bytes == eight.kv_shape.token_bytes
    # k and v of one head each, 32 layers, as before; all else halves
    kv_weights = 32 * 2 * 128 * 4096 * 2
    assert sixteen.weight_bytes - kv_weights == pytest.approx((eight.weight_bytes - kv_weights) / 2, rel=0.001)


def test_a_latent_is_on_every_device() -> None:
    assert a_plan(DEEPSEEK_V3, ways=8).kv_shape.token_bytes == a_plan(DEEPSEEK_V3).kv_shape.token_bytes


def test_heads_that_cannot_be_dealt_are_refused_with_what_can() -> None:
    shape = parse_shape(LLAMA_8B, source="x")

    with pytest.raises(
        ConfigError, match=r"32 heads with 8 key/value heads .* 3 devices; possible are 1, 2, 4, 8, 16, 32"
    ):
        shape.check_ways(3)
    shape.check_ways(4)


def test_one_sequence_decodes_at_most_as_fast_as_memory_is_read() -> None:
    """All weights but the embedding, and a context's keys and values: 8.03 B less 0.53 B parameters, 2 bytes each."""
    plan = a_plan(LLAMA_8B)

    read = (8_030_261_248 - 128_256 * 4096) * 2 + 2048 * 131_072
    assert plan.decode_limit(1, 2048) == pytest.approx(4.8e12 / read, rel=1e-6)
    assert plan.decode_limit(64, 2048) == pytest.approx(64 * 4.8e12 / (read + 63 * 2048 * 131_072), rel=1e-6)


def test_a_tied_head_is_read_once() -> None:
    plan = a_plan(QWEN3_06B)

    assert weight_sizes(plan.model, plan.layout).step_bytes == weight_sizes(plan.model, plan.layout).total_bytes


def test_layers_that_slide_read_their_window() -> None:
    plan = a_plan(GEMMA3_4B_TEXT)

    seconds = {tokens: 1 / (plan.decode_limit(1, tokens) or 0) for tokens in (1024, 2048)}
    # of 34 layers 5 see all; each token of one layer is 4,096 bytes
    assert (seconds[2048] - seconds[1024]) * 4.8e12 == pytest.approx(1024 * 5 * 4096, rel=1e-3)


def test_of_experts_one_sequence_reads_those_that_it_visits() -> None:
    plan = a_plan(MIXTRAL_8X7B)
    sizes = weight_sizes(plan.model, plan.layout)

    assert sizes.expert_bytes == 32 * 8 * 3 * 4096 * 14_336 * 2
    alone = 4.8e12 / (plan.decode_limit(1, 1) or 0)
    assert alone == pytest.approx(sizes.step_bytes + sizes.expert_bytes / 4, rel=1e-4)
    # eight sequences visit all but (3/4)^8 of them
    eight = 8 * 4.8e12 / (plan.decode_limit(8, 1) or 0)
    assert eight == pytest.approx(sizes.step_bytes + sizes.expert_bytes * (1 - 0.75**8), rel=1e-4)


def test_without_a_bandwidth_there_is_no_limit() -> None:
    assert a_plan(QWEN3_06B, CPU).decode_limit(1, 100) is None


def test_loads_name_what_fits_and_what_may_run() -> None:
    plan = a_plan(LLAMA_8B, max_num_seqs=100)

    alone, *rest = loads(plan)

    assert (alone.num_seqs, alone.tokens_each) == (1, 2048)
    assert [load.tokens_each for load in rest] == [512, 2048, 8192, 32_768, 131_072]
    assert rest[0].num_seqs == 100
    assert rest[0].room > 1000
    assert rest[-1].num_seqs == int(rest[-1].room) < 100
    assert plan.kv is not None
    assert rest[-1].room == plan.kv.max_concurrency


def test_recorded_steps_take_memory_on_one_gpu_unless_every_step_is_eager() -> None:
    """Logits, tables of blocks and activations of 1,024 sequences, and 57 graphs of 8 MiB."""
    plan, eager = a_plan(LLAMA_8B), a_plan(LLAMA_8B, enforce_eager=True)

    logits = 1024 * 128_256 * 4
    assert 4 * logits + 57 * 8 * 2**20 < plan.graph_bytes < 1.2 * (4 * logits + 57 * 8 * 2**20)
    assert eager.graph_bytes == 0
    assert eager.kv_bytes - plan.kv_bytes == pytest.approx(plan.graph_bytes, abs=plan.kv_shape.block_bytes)
