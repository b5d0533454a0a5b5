"""Attention over transposed keys against the references, and cache writes through the Protocol."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from octavo_kernels.attention_plan import plan_paged_attention
from octavo_kernels.batches import AttentionBatch
from octavo_kernels.errors import KernelError
from octavo_kernels.extend_attention_ref import attend_sequence
from octavo_kernels.handles import KVCacheSpec
from octavo_kernels.numba_backend import NumbaBackend
from octavo_kernels.numba_cache import TransposedCache
from octavo_testing.kernels import PagedCase, Shape, a_paged_case, assert_close

TOLERANCE = 3e-6
"""Relative and absolute; exp2's polynomial is right to 2e-7."""


@pytest.fixture(scope="module")
def backend() -> NumbaBackend:
    return NumbaBackend(2)


def a_half_case(query_lens: list[int], seq_lens: list[int], shape: Shape | None = None) -> PagedCase:
    """Keys and values that float16 holds exactly, so that storing them costs nothing."""
    case = a_paged_case(query_lens, seq_lens, shape=shape)
    for values in (case.key_cache, case.value_cache):
        values.copy_(values.half())
    return case


def filled(backend: NumbaBackend, case: PagedCase) -> TransposedCache:
    """The case's caches in this backend's layout, NaN included, as the second layer of two."""
    num_blocks, num_kv_heads, block_size, head_dim = case.key_cache.shape
    cache = backend.allocate_kv_cache(
        KVCacheSpec(
            num_layers=2,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            dtype=torch.float16,
        )
    )
    k, v = (values.transpose(1, 2).flatten(0, 1) for values in (case.key_cache, case.value_cache))
    backend.store_kv(k, v, cache, 1, torch.arange(num_blocks * block_size))
    return cache


def attended(backend: NumbaBackend, case: PagedCase, window: int | None = None) -> torch.Tensor:
    cache = filled(backend, case)
    plan = backend.plan_attention(case.batch, cache, case.q.shape[1], window)
    return backend.attention(case.q, cache, 1, plan, case.scale)


def expected(case: PagedCase, window: int | None = None) -> torch.Tensor:
    starts = pairwise(case.batch.query_start_loc.tolist())
    num_kv_heads, _, head_dim = case.key_cache.shape[1:]
    plan = plan_paged_attention(
        case.batch,
        num_heads=case.q.shape[1],
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        query_tile=1,
        target_items=1,
        window=window,
    )
    caches = case.key_cache, case.value_cache
    return torch.cat(
        [
            attend_sequence(case.q[start:end], *caches, plan, sequence, case.scale)
            for sequence, (start, end) in enumerate(starts)
        ]
    )


SHAPES = [
    Shape(),
    Shape(num_heads=9, num_kv_heads=3, head_dim=64),
    Shape(num_heads=14, num_kv_heads=2, head_dim=64),
    Shape(num_heads=4, num_kv_heads=4, head_dim=80),
    Shape(num_heads=8, num_kv_heads=2, head_dim=128),
    Shape(num_heads=5, num_kv_heads=1, head_dim=16, block_size=8),
    Shape(num_heads=2, num_kv_heads=1, head_dim=40, block_size=24),
    Shape(num_heads=2, num_kv_heads=1, head_dim=32, block_size=1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_is_the_references(backend: NumbaBackend, shape: Shape) -> None:
    """Decodes, a chunk of a prefill and a whole one in one batch; what nobody owns is NaN."""
    case = a_half_case([1, 5, 1, 33], [1, 40, 63, 33], shape)

    assert_close(attended(backend, case), expected(case), TOLERANCE)


def test_a_row_is_the_same_alone_and_in_a_batch(backend: NumbaBackend) -> None:
    case = a_half_case([1, 1, 1], [70, 3, 16])
    together = attended(backend, case)
    cache = filled(backend, case)
    alone = a_half_case([1], [70]).batch
    alone.block_tables[:] = case.batch.block_tables[:1]

    plan = backend.plan_attention(alone, cache, case.q.shape[1])

    assert torch.equal(backend.attention(case.q[:1], cache, 1, plan, case.scale), together[:1])


@pytest.mark.parametrize("window", [1, 2, 15, 33, 1000])
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[5], SHAPES[6], SHAPES[7]], ids=str)
def test_a_window_is_the_references(backend: NumbaBackend, shape: Shape, window: int) -> None:
    """Blocks before every row's window are NaN: they may be freed. Seen to fail a token off at either end."""
    case = a_half_case([1, 5, 1, 33], [1, 40, 63, 33], shape)
    query_lens = case.batch.query_start_loc.diff().tolist()
    for i, (seq_len, query_len) in enumerate(zip(case.batch.seq_lens.tolist(), query_lens, strict=True)):
        gone = max(0, seq_len - query_len + 1 - window) // shape.block_size
        for values in (case.key_cache, case.value_cache):
            values[case.batch.block_tables[i, :gone].long()] = torch.nan

    out = attended(backend, case, window)

    assert_close(out, expected(case, window), TOLERANCE)


@pytest.mark.parametrize("num_heads", [1, 3, 5, 14])
def test_a_row_of_a_prompt_is_the_same_in_any_chunk(backend: NumbaBackend, num_heads: int) -> None:
    """Rows that share the loads of keys share nothing else: a prompt cut anywhere gives the same bits."""
    case = a_half_case([37], [70], Shape(num_heads=num_heads, num_kv_heads=1, head_dim=32))
    whole = attended(backend, case)

    for first, last in ((0, 1), (1, 3), (3, 36), (36, 37)):
        cache = filled(backend, case)
        batch = AttentionBatch(
            query_start_loc=torch.tensor([0, last - first], dtype=torch.int32),
            seq_lens=torch.tensor([33 + last], dtype=torch.int32),
            block_tables=case.batch.block_tables,
            slot_mapping=case.batch.slot_mapping[first:last],
            max_query_len=last - first,
            max_seq_len=33 + last,
        )
        plan = backend.plan_attention(batch, cache, num_heads)

        assert torch.equal(backend.attention(case.q[first:last], cache, 1, plan, case.scale), whole[first:last])


def test_heads_too_wide_for_a_threads_memory_are_refused(backend: NumbaBackend) -> None:
    spec = KVCacheSpec(num_layers=1, num_blocks=2, block_size=16, num_kv_heads=1, head_dim=514, dtype=torch.float16)

    with pytest.raises(KernelError, match="head_dim is 514, must be even and at most 512"):
        backend.allocate_kv_cache(spec)


def test_large_scores_do_not_overflow(backend: NumbaBackend) -> None:
    case = a_half_case([1, 20], [50, 20])
    case.q.mul_(300)

    out = attended(backend, case)

    assert_close(out, expected(case), 1e-4)


def test_another_layer_is_left_alone(backend: NumbaBackend) -> None:
    cache = filled(backend, a_half_case([3], [3]))

    assert not cache.keys[0].any()
    assert not cache.values[0].any()


def test_only_float16_is_kept(backend: NumbaBackend) -> None:
    spec = KVCacheSpec(num_layers=1, num_blocks=2, block_size=16, num_kv_heads=1, head_dim=16, dtype=torch.bfloat16)

    with pytest.raises(KernelError, match=r"KV cache is torch\.bfloat16, the numba backend keeps torch\.float16 only"):
        backend.allocate_kv_cache(spec)
