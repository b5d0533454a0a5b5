"""Rules of the block pool."""

from __future__ import annotations

import pytest

from octavo_server.engine.block_pool import NULL_BLOCK, BlockPool
from octavo_server.engine.outputs import BlockId


def test_fresh_pool_hands_out_all_blocks_but_the_null_block_in_order() -> None:
    pool = BlockPool(4)

    assert pool.allocate(3) == [1, 2, 3]
    assert pool.num_free == 0
    assert pool.references(NULL_BLOCK) == 0


def test_a_pool_needs_a_block_beside_the_null_block() -> None:
    with pytest.raises(AssertionError, match="beside the null block"):
        BlockPool(1)


def test_allocating_more_than_is_free_is_our_own_mistake() -> None:
    pool = BlockPool(4)

    with pytest.raises(AssertionError, match="4 blocks asked, 3 free"):
        pool.allocate(4)


def test_free_returns_block_only_when_last_reference_drops() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(2)
    pool.share(blocks)

    pool.release(blocks, retained=())
    assert (pool.num_used, pool.num_free) == (2, 1)

    pool.release(blocks, retained=())
    assert (pool.num_used, pool.num_free) == (0, 3)


def test_blocks_without_content_are_reused_first_and_the_warmest_of_them() -> None:
    """LIFO: what was released last is handed out next; the end of a chain is released first."""
    pool = BlockPool(6)
    blocks = pool.allocate(5)

    pool.release(blocks[:3], retained=blocks[:1])

    assert pool.allocate(3) == [blocks[1], blocks[2], blocks[0]]


def test_blocks_with_content_are_reused_oldest_first_and_ends_before_beginnings() -> None:
    pool = BlockPool(5)
    first, second = pool.allocate(2), pool.allocate(2)

    pool.release(first, retained=first)
    pool.release(second, retained=second)

    assert pool.allocate(4) == [first[1], first[0], second[1], second[0]]


def test_retained_blocks_count_as_free() -> None:
    pool = BlockPool(5)
    blocks = pool.allocate(4)

    pool.release(blocks, retained=blocks)

    assert (pool.num_used, pool.num_free) == (0, 4)


def test_sharing_takes_a_retained_block_out_of_the_middle_of_the_free_list() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(3)
    pool.release(blocks, retained=blocks)

    pool.share([blocks[1]])

    assert pool.references(blocks[1]) == 1
    assert pool.allocate(2) == [blocks[2], blocks[0]]


def test_count_free_counts_what_sharing_would_take() -> None:
    pool = BlockPool(5)
    held, freed = pool.allocate(2), pool.allocate(2)
    pool.release(freed, retained=freed)

    assert pool.count_free([*held, *freed]) == 2


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda pool: pool._blank.append(BlockId(3)), "free twice"),
        (lambda pool: pool._blank.append(NULL_BLOCK), "null block is free"),
        (lambda pool: pool._references.__setitem__(1, 2), "block 1: wrong reference count"),
        (lambda pool: pool._blank.remove(3), "lost"),
        (lambda pool: pool._retained.__setitem__(pool._blank.pop(), None), "retained without content"),
        (lambda pool: pool._blank.append(pool._retained.popitem()[0]), "blank stack"),
    ],
)
def test_integrity_check_sees_every_kind_of_damage(break_it, message: str) -> None:  # type: ignore[no-untyped-def]
    pool = BlockPool(4)
    held, kept = pool.allocate(1), pool.allocate(1)
    pool.release(kept, retained=kept)
    pool.check_integrity({held[0]: 1}, retained=kept)

    break_it(pool)

    with pytest.raises(AssertionError, match=message):
        pool.check_integrity({held[0]: 1}, retained=kept)
