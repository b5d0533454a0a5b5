"""Bytes, blocks and tokens. The shape is a toy: a block is 2 x 2 layers x 1 head x 8 x 4 bytes x 16 tokens = 2,048 bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_server.capacity import KVShape, default_cpu_kv_bytes, plan_kv_cache, usable_memory_bytes
from octavo_server.errors import ConfigError, StartupError

SHAPE = KVShape(num_layers=2, num_kv_heads=1, head_dim=8, bytes_per_element=4, block_size=16)
GIB = 2**30
MEMINFO = (
    "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\nHugePages_Total:       0\n"
)


def test_a_block_holds_keys_and_values_of_all_layers() -> None:
    assert SHAPE.block_bytes == 2048


def test_llama_8b_needs_128_kib_a_token() -> None:
    """32 layers, 8 heads of 128 in bfloat16: the number that everybody knows."""
    shape = KVShape(num_layers=32, num_kv_heads=8, head_dim=128, bytes_per_element=2, block_size=16)

    assert shape.block_bytes // 16 == 128 * 1024


def test_bytes_for_sequences_count_whole_blocks_and_the_null_block() -> None:
    assert SHAPE.bytes_for(3, 17) == (3 * 2 + 1) * 2048


def test_a_budget_gives_whole_blocks_one_of_them_null() -> None:
    plan = plan_kv_cache(shape=SHAPE, budget_bytes=11 * 2048 + 2047, context_length=40)

    assert plan.num_blocks == 11
    assert plan.total_bytes == 11 * 2048
    assert plan.capacity_tokens == 160
    assert plan.max_model_len == 40
    assert plan.max_concurrency == 10 / 3


def test_auto_context_shrinks_to_what_fits() -> None:
    assert plan_kv_cache(shape=SHAPE, budget_bytes=3 * 2048, context_length=8192).max_model_len == 32


@given(st.integers(2 * 2048, 100_000), st.integers(1, 600), st.integers(0, 5000), st.booleans())
def test_blocks_are_the_most_that_fit_beside_what_the_context_takes(
    budget: int, context: int, context_block_bytes: int, is_asked: bool
) -> None:
    of_model = -(-context // 16)
    needs = {
        blocks: blocks * 2048 + (of_model if is_asked else min(of_model, blocks - 1)) * context_block_bytes
        for blocks in range(2, 60)
    }
    most = max((blocks for blocks, need in needs.items() if need <= budget), default=0)
    asked = context if is_asked else None

    try:
        found = plan_kv_cache(
            shape=SHAPE,
            budget_bytes=budget,
            context_length=context,
            asked_max_model_len=asked,
            context_block_bytes=context_block_bytes,
        ).num_blocks
    except StartupError:
        found = 0

    assert found == (most if not is_asked or (most - 1) * 16 >= context else 0)


def test_a_context_that_was_asked_for_is_kept_where_it_just_fits() -> None:
    plan = plan_kv_cache(shape=SHAPE, budget_bytes=3 * 2048, context_length=8192, asked_max_model_len=32)

    assert plan.max_model_len == 32
    assert plan.max_concurrency == 1


def test_a_context_that_was_asked_for_and_does_not_fit_is_refused_with_both_numbers_and_the_remedy() -> None:
    with pytest.raises(StartupError) as caught:
        plan_kv_cache(shape=SHAPE, budget_bytes=3 * 2048, context_length=8192, asked_max_model_len=8192)

    assert caught.value.reason == "KVCacheTooSmall"
    assert str(caught.value) == (
        "a context of 8,192 tokens needs 1.0 MiB of KV cache, there are 0.0 MiB, room for 32 tokens; "
        "lower --max-model-len to 32 or raise --kv-cache-memory-bytes to 1,050,624 bytes"
    )


def test_a_budget_without_room_for_a_token_is_refused() -> None:
    with pytest.raises(StartupError, match=r"room for 0 tokens; raise --kv-cache-memory-bytes to 4,096 bytes"):
        plan_kv_cache(shape=SHAPE, budget_bytes=2048, context_length=8192)


def test_the_remedy_is_enough() -> None:
    plan = plan_kv_cache(shape=SHAPE, budget_bytes=1_050_624, context_length=8192, asked_max_model_len=8192)

    assert plan.max_model_len == 8192


def test_a_number_of_blocks_wins_over_bytes() -> None:
    assert plan_kv_cache(shape=SHAPE, budget_bytes=0, context_length=99, num_blocks_override=4).capacity_tokens == 48


def test_too_few_blocks_are_refused_in_blocks() -> None:
    with pytest.raises(
        StartupError, match=r"lower --max-model-len to 48 or raise --num-gpu-blocks-override to 5 blocks"
    ):
        plan_kv_cache(shape=SHAPE, budget_bytes=0, context_length=99, asked_max_model_len=64, num_blocks_override=4)


@pytest.mark.parametrize(
    ("seqs", "context", "memory", "weights", "expected"),
    [
        pytest.param(2, 32, 16 * GIB, GIB, (2 * 2 + 1) * 2048, id="need"),
        pytest.param(10**6, 8192, 16 * GIB, GIB, 4 * GIB, id="4 GiB"),
        pytest.param(10**6, 8192, 3 * GIB, GIB, int(0.4 * 2 * GIB), id="40 % of what the weights leave"),
        pytest.param(10**6, 8192, GIB, 2 * GIB, 0, id="nothing left"),
    ],
)
def test_the_default_on_a_cpu_is_the_least_of_three(
    seqs: int, context: int, memory: int, weights: int, expected: int
) -> None:
    assert (
        default_cpu_kv_bytes(
            shape=SHAPE, max_num_seqs=seqs, max_model_len=context, memory_bytes=memory, weight_bytes=weights
        )
        == expected
    )


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        pytest.param([], 8 * GIB, id="no cgroup"),
        pytest.param(["max\n"], 8 * GIB, id="v2 without a limit"),
        pytest.param(["4294967296\n"], 4 * GIB, id="v2 with a limit"),
        pytest.param(["9223372036854771712\n"], 8 * GIB, id="v1 without a limit"),
        pytest.param(["max\n", "2147483648\n"], 2 * GIB, id="both mounted"),
        pytest.param(["17179869184"], 8 * GIB, id="a limit as large as the machine"),
    ],
)
def test_usable_memory_is_the_cgroup_limit_else_what_is_available(limits: list[str], expected: int) -> None:
    assert usable_memory_bytes(meminfo=MEMINFO, cgroup_limits=limits) == expected


def test_a_limit_is_enough_where_meminfo_is_missing_and_nothing_is_an_error_with_a_remedy() -> None:
    assert usable_memory_bytes(meminfo="", cgroup_limits=["1073741824"]) == GIB
    with pytest.raises(ConfigError, match="--kv-cache-memory-bytes"):
        usable_memory_bytes(meminfo="", cgroup_limits=["max"])
