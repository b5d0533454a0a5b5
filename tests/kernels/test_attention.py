"""Attention over the paged cache: the references against torch on contiguous K and V, everything else against them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from octavo_kernels import decode_attention, extend_attention
from octavo_testing.kernels import PagedCase, Shape, a_paged_case, assert_close
from octavo_testing.paged_attention import MIXED, TOLERANCE, a_plan, by_reference, by_torch, by_triton

SHAPES = [
    Shape(num_heads=6, num_kv_heads=3, head_dim=24, block_size=16),
    Shape(num_heads=4, num_kv_heads=4, head_dim=80, block_size=5),
    Shape(num_heads=8, num_kv_heads=1, head_dim=64, block_size=32),
]


def by_torchs_own(case: PagedCase, window: int | None = None) -> torch.Tensor:
    """scaled_dot_product_attention, a sequence at a time, on K and V that were never paged."""
    rows = []
    for i, (k, v) in enumerate(case.contexts):
        start, end = case.batch.query_start_loc[i : i + 2].tolist()
        mask = torch.ones(end - start, len(k), dtype=torch.bool).tril(len(k) - (end - start))
        if window is not None:
            mask = mask.triu(len(k) - (end - start) - window + 1)
        heads_first = (x.transpose(0, 1)[None] for x in (case.q[start:end], k, v))
        out = scaled_dot_product_attention(*heads_first, attn_mask=mask, scale=case.scale, enable_gqa=True)
        rows.append(out[0].transpose(0, 1))
    return torch.cat(rows)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference_equals_torchs_own_attention(shape: Shape) -> None:
    case = a_paged_case(*MIXED, shape=shape)

    assert_close(by_reference(case), by_torchs_own(case), 5e-6)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_triton_equals_the_reference_on_a_mixed_batch(shape: Shape, dtype: torch.dtype, device: str) -> None:
    case = a_paged_case(*MIXED, shape=shape, dtype=dtype, device=device)

    assert_close(by_triton(case), by_reference(case), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_torch_backend_equals_the_reference_on_a_mixed_batch(shape: Shape, dtype: torch.dtype) -> None:
    case = a_paged_case(*MIXED, shape=shape, dtype=dtype)

    assert_close(by_torch(case), by_reference(case), TOLERANCE[dtype])


@pytest.mark.parametrize("implementation", [by_triton, by_torch], ids=["triton", "torch"])
@pytest.mark.parametrize("seq_len", [1, 7, 15, 16, 17, 63, 64, 65, 130])
def test_one_decode_over_block_and_tile_edges(implementation: object, seq_len: int) -> None:
    case = a_paged_case([1], [seq_len], shape=SHAPES[0])

    assert_close(implementation(case), by_reference(case), 5e-6)  # type: ignore[operator]


@pytest.mark.parametrize("implementation", [by_triton, by_torch], ids=["triton", "torch"])
@pytest.mark.parametrize(("query_len", "seq_len"), [(2, 2), (7, 7), (63, 63), (63, 64), (2, 130), (64, 128), (65, 129)])
def test_one_extend_over_block_and_tile_edges(implementation: object, query_len: int, seq_len: int) -> None:
    case = a_paged_case([query_len], [seq_len], shape=SHAPES[0])

    assert_close(implementation(case), by_reference(case), 5e-6)  # type: ignore[operator]


WINDOWS = [1, 2, 15, 33, 64, 80, 189, 1000]
"""Around the lengths of MIXED, its blocks and the kernels' tiles."""


def without_the_unseen(case: PagedCase, window: int) -> PagedCase:
    """The same, and the null block, now NaN too, stands for each block that holds nothing but positions before the window."""
    block_size = case.key_cache.shape[2]
    tables = case.batch.block_tables.clone()
    query_lens = case.batch.query_start_loc.diff().tolist()
    for i, (seq_len, query_len) in enumerate(zip(case.batch.seq_lens.tolist(), query_lens, strict=True)):
        tables[i, : max(0, seq_len - query_len + 1 - window) // block_size] = 0
    for cache in (case.key_cache, case.value_cache):
        cache[0] = torch.nan
    return replace(case, batch=replace(case.batch, block_tables=tables))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference_with_a_window_equals_torchs_own_attention(shape: Shape, window: int) -> None:
    """Seen to fail with the window a token longer or shorter."""
    case = a_paged_case(*MIXED, shape=shape)

    assert_close(by_reference(case, window), by_torchs_own(case, window), 5e-6)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_torch_backend_with_a_window_equals_the_reference(shape: Shape, window: int) -> None:
    case = a_paged_case(*MIXED, shape=shape)

    assert_close(by_torch(case, window), by_reference(case, window), 5e-6)


@pytest.mark.parametrize(
    ("window", "how"),
    [
        (1, {}),
        (15, {"query_tile": 3}),
        (33, {"target_items": 40}),
        (80, {"query_tile": 9}),
        (1000, {"target_items": 1}),
    ],
)
def test_triton_with_a_window_equals_the_reference(window: int, how: dict[str, int], device: str) -> None:
    """Blocks before the window are gone: neither kernel may read them. Seen to fail a token off at either kernel's edge."""
    case = without_the_unseen(a_paged_case(*MIXED, shape=SHAPES[1], device=device), window)

    assert_close(by_triton(case, window=window, **how), by_reference(case, window), 5e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_triton_with_a_window_in_half_precision(dtype: torch.dtype, device: str) -> None:
    """Many rows a tile, so that some see nothing of the first one."""
    case = without_the_unseen(
        a_paged_case([1, 90, 40], [200, 300, 40], shape=SHAPES[0], dtype=dtype, device=device), 30
    )

    assert_close(by_triton(case, window=30), by_reference(case, 30), TOLERANCE[dtype])


def test_torch_backend_reads_nothing_before_a_window() -> None:
    case = a_paged_case(*MIXED, shape=SHAPES[0])
    expected = by_reference(case, 17)
    # a decode's padding goes to slot 0, which is finite as long as no block of a sequence is it
    gone = [
        (i, block)
        for i, (seq_len, query_len) in enumerate(zip(*reversed(MIXED), strict=True))
        for block in range(max(0, seq_len - query_len + 1 - 17) // 16)
    ]
    for i, block in gone:
        for cache in (case.key_cache, case.value_cache):
            cache[case.batch.block_tables[i, block].long()] = torch.nan

    assert len(gone) == 12
    assert_close(by_torch(case, 17), expected, 5e-6)


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_batch_with_any_window_on_the_torch_backend(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([*SHAPES, Shape(num_heads=2, num_kv_heads=2, head_dim=8, block_size=1)]))
    lengths = data.draw(
        st.lists(
            st.tuples(st.sampled_from([1, 1, 1, 2, 5, 33]), st.sampled_from([0, 1, 16, 50, 300, 700])),
            min_size=1,
            max_size=6,
        )
    )
    window = data.draw(st.integers(1, 80))
    case = a_paged_case([n for n, _ in lengths], [n + prefix for n, prefix in lengths], shape=shape)

    assert_close(by_torch(case, window), by_reference(case, window), 1e-5)


@pytest.mark.parametrize("target_items", [1, 7, 64])
def test_splits_of_a_context_join_to_the_same_result(target_items: int, device: str) -> None:
    """One long decode among short ones, cut into one item, a few, and one a tile."""
    case = a_paged_case([1, 1, 1], [20, 700, 65], shape=Shape(num_heads=4, num_kv_heads=2, head_dim=32), device=device)

    assert_close(by_triton(case, target_items=target_items), by_reference(case), 5e-6)


def test_query_tiles_smaller_than_a_tile_of_rows(device: str) -> None:
    case = a_paged_case([11, 1, 5], [30, 9, 5], device=device)

    assert_close(by_triton(case, query_tile=3), by_reference(case), 5e-6)


def test_more_heads_in_a_group_than_rows_in_a_tile(device: str) -> None:
    case = a_paged_case([1, 3], [9, 20], shape=Shape(num_heads=71, num_kv_heads=1, head_dim=64), device=device)

    assert_close(by_triton(case), by_reference(case), 5e-6)


def test_each_kernel_leaves_the_others_rows_alone(device: str) -> None:
    case = a_paged_case(*MIXED, device=device)
    decoded, extended = torch.full_like(case.q, 7), torch.full_like(case.q, 7)

    decode_attention.decode_attention(case.q, case.key_cache, case.value_cache, a_plan(case), case.scale, decoded)
    extend_attention.extend_attention(case.q, case.key_cache, case.value_cache, a_plan(case), case.scale, extended)

    rows_of_decodes = [0, 8, 49]
    is_decode = torch.zeros(50, dtype=torch.bool).index_fill(0, torch.tensor(rows_of_decodes), True)
    assert torch.all(decoded[~is_decode] == 7)
    assert torch.all(extended[is_decode] == 7)
    assert not torch.any(decoded[is_decode] == 7)
    assert not torch.any(extended[~is_decode] == 7)


@pytest.mark.parametrize("implementation", [by_triton, by_torch], ids=["triton", "torch"])
def test_a_row_does_not_depend_on_its_batch_mates(implementation: object) -> None:
    shape = Shape(num_heads=4, num_kv_heads=2, head_dim=32)
    together = a_paged_case(*MIXED, shape=shape)
    # the builder draws sequences in order, so the first is the same alone
    alone = a_paged_case([MIXED[0][0]], [MIXED[1][0]], shape=shape)
    q = together.q.clone()
    q[:1] = alone.q
    for side in ("key_cache", "value_cache"):
        blocks = alone.batch.block_tables[0].long()
        getattr(together, side)[together.batch.block_tables[0, : len(blocks)].long()] = getattr(alone, side)[blocks]
    together = PagedCase(
        q=q,
        key_cache=together.key_cache,
        value_cache=together.value_cache,
        batch=together.batch,
        contexts=together.contexts,
    )

    difference = implementation(together)[:1] - implementation(alone)  # type: ignore[operator]

    assert difference.abs().max() < 1e-6


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_batch_on_the_torch_backend(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([*SHAPES, Shape(num_heads=2, num_kv_heads=2, head_dim=8, block_size=1)]))
    lengths = data.draw(
        st.lists(
            st.tuples(st.sampled_from([1, 1, 1, 2, 5, 33]), st.sampled_from([0, 1, 16, 50, 300, 700])),
            min_size=1,
            max_size=6,
        )
    )
    case = a_paged_case([n for n, _ in lengths], [n + prefix for n, prefix in lengths], shape=shape)

    assert_close(by_torch(case), by_reference(case), 1e-5)


@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_any_batch_on_triton(data: st.DataObject) -> None:
    lengths = data.draw(
        st.lists(
            st.tuples(st.sampled_from([1, 1, 2, 5, 33]), st.sampled_from([0, 1, 16, 50, 140])), min_size=1, max_size=4
        )
    )
    case = a_paged_case(
        [n for n, _ in lengths],
        [n + prefix for n, prefix in lengths],
        shape=Shape(num_heads=2, num_kv_heads=1, head_dim=24, block_size=5),
    )
    target_items = data.draw(st.sampled_from([1, 3, 20]))

    assert_close(by_triton(case, target_items=target_items), by_reference(case), 5e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        Shape(num_heads=32, num_kv_heads=8, head_dim=128),
        Shape(num_heads=9, num_kv_heads=3, head_dim=64),
        Shape(num_heads=16, num_kv_heads=16, head_dim=96, block_size=32),
    ],
    ids=str,
)
def test_real_sizes_on_a_gpu(shape: Shape, dtype: torch.dtype) -> None:
    query_lens = [1] * 30 + [700, 300]
    seq_lens = [17 * (i + 1) for i in range(29)] + [4000, 700, 1500]
    case = a_paged_case(query_lens, seq_lens, shape=shape, dtype=dtype, device="cuda")

    # tf32x3 is a little wider than float32
    tolerance = {torch.float32: 2e-5}.get(dtype, TOLERANCE[dtype])
    assert_close(by_triton(case, target_items=528), by_reference(case), tolerance)
