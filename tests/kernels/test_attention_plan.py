from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo_kernels.attention_plan import CONTEXT_TILE, PagedAttentionPlan, plan_paged_attention
from octavo_kernels.batches import AttentionBatch
from octavo_kernels.launch import ceil_div


def a_plan(
    query_lens: list[int],
    seq_lens: list[int],
    *,
    target_items: int = 8,
    query_tile: int = 4,
    window: int | None = None,
    tiles_per_item: int | None = None,
) -> PagedAttentionPlan:
    batch = AttentionBatch(
        query_start_loc=torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        block_tables=torch.zeros(len(seq_lens), 1, dtype=torch.int32),
        slot_mapping=torch.zeros(sum(query_lens), dtype=torch.int64),
        max_query_len=max(query_lens),
        min_query_len=min(query_lens),
        max_seq_len=max(seq_lens),
    )
    return plan_paged_attention(
        batch,
        num_heads=2,
        num_kv_heads=2,
        head_dim=4,
        query_tile=query_tile,
        target_items=target_items,
        window=window,
        tiles_per_item=tiles_per_item,
    )


def items_of(plan: PagedAttentionPlan) -> list[int]:
    """Decode items of each sequence."""
    assert plan.decode is not None
    return plan.decode.first_item.diff().tolist()


def test_short_decodes_get_one_item_each() -> None:
    assert items_of(a_plan([1, 1, 1], [1, 64, 63])) == [1, 1, 1]


def test_more_decodes_than_programs_to_aim_at_get_one_item_each() -> None:
    plan = a_plan([1] * 9, [100] * 9, target_items=2)

    assert plan.decode is not None
    assert plan.decode.item_sequence[:9].tolist() == list(range(9))


def test_a_long_decode_is_cut_finer_than_the_short_ones_beside_it() -> None:
    assert items_of(a_plan([1, 1], [40 * CONTEXT_TILE, 64], target_items=16)) == [7, 1]


def test_where_an_items_size_is_given_a_decode_is_cut_alike_beside_any_others() -> None:
    lens = [10 * CONTEXT_TILE, 64, 3 * CONTEXT_TILE + 1, 200 * CONTEXT_TILE]

    together = a_plan([1] * 4, lens, tiles_per_item=2)

    assert items_of(together) == [5, 1, 2, 100]
    assert [items_of(a_plan([1], [length], tiles_per_item=2)) for length in lens] == [[5], [1], [2], [100]]
    assert together.decode is not None
    assert together.decode.item_sequence.shape[0] >= 108


def test_a_window_leaves_a_decode_the_tiles_that_it_reaches_into() -> None:
    """Tiles of 64: a window of 64 ends with position 639, or with 640, and then reaches into two."""
    plan = a_plan([1, 1], [640, 641], target_items=64, window=64)

    assert items_of(plan) == [1, 2]
    assert plan.decode is not None
    assert plan.decode.item_sequence.shape == (4,)


def test_tiles_that_a_window_makes_equal_stand_before_those_with_less_to_read() -> None:
    work = a_plan([8, 8], [8, 100], window=5).extend
    assert work is not None

    assert sorted(work.tile_sequence.tolist()[:2]) == [1, 1]
    assert sorted(zip(work.tile_sequence.tolist()[:3], work.tile_start.tolist()[:3], strict=True)) == [
        (0, 4),
        (1, 0),
        (1, 4),
    ]


def test_extends_get_no_decode_item_and_decodes_no_tile() -> None:
    plan = a_plan([1, 9, 1], [30, 20, 5])

    assert items_of(plan) == [1, 0, 1]
    assert plan.extend is not None
    named = plan.extend.tile_sequence[plan.extend.tile_sequence < 3]
    assert named.tolist() == [1, 1, 1]


def test_a_step_of_decodes_alone_has_no_extend_work() -> None:
    assert a_plan([1, 1], [5, 6]).extend is None


def test_a_step_without_decodes_has_no_decode_work() -> None:
    assert a_plan([2, 3], [5, 6]).decode is None
    assert a_plan([2, 1], [5, 6]).decode is not None


def test_the_tile_with_the_longest_context_stands_first() -> None:
    work = a_plan([8, 8], [8, 100]).extend
    assert work is not None

    tiles = list(zip(work.tile_sequence.tolist(), work.tile_start.tolist(), strict=True))

    assert tiles[:4] == [(1, 4), (1, 0), (0, 4), (0, 0)]


@given(
    sequences=st.lists(st.tuples(st.just(1) | st.integers(1, 40), st.integers(0, 3000)), min_size=1, max_size=12),
    target_items=st.sampled_from([1, 2, 7, 60, 200]),
    query_tile=st.integers(1, 64),
    window=st.none() | st.integers(1, 500),
)
def test_every_list_names_all_work_once_and_ends_within_its_size(
    sequences: list[tuple[int, int]], target_items: int, query_tile: int, window: int | None
) -> None:
    query_lens = [query_len for query_len, _ in sequences]
    plan = a_plan(
        query_lens, [query_len + prefix for query_len, prefix in sequences],
        target_items=target_items, query_tile=query_tile, window=window,
    )  # fmt: skip
    num_seqs = len(sequences)

    assert (plan.decode is None) == (1 not in query_lens)
    if plan.decode is not None:
        items = plan.decode.item_sequence.tolist()
        for i, count in enumerate(items_of(plan)):
            assert (count > 0) == (query_lens[i] == 1)
            assert items.count(i) == count
        assert items == sorted(items)
    if plan.extend is not None:
        tiles = zip(plan.extend.tile_sequence.tolist(), plan.extend.tile_start.tolist(), strict=True)
        expected = {
            (i, tile * query_tile)
            for i, query_len in enumerate(query_lens)
            if query_len > 1
            for tile in range(ceil_div(query_len, query_tile))
        }
        named = [tile for tile in tiles if tile[0] < num_seqs]
        assert len(named) == len(expected)
        assert set(named) == expected
