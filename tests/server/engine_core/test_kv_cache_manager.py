"""Rules of the KV cache manager; sequences' fields are set by hand, as the scheduler would."""

from __future__ import annotations

import pytest

from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.outputs import BlockId
from octavo_server.engine.request import SamplingParams
from octavo_server.engine.sequence import Sequence
from octavo_testing.sequences import a_sequence


def a_manager(blocks: int = 8, *, prefix_caching: bool = True) -> KVCacheManager:
    """Blocks of 4 tokens, the null block not counted."""
    return KVCacheManager(num_blocks=blocks + 1, block_size=4, enable_prefix_caching=prefix_caching)


def holding(kv: KVCacheManager, sequence: Sequence, computed: int) -> Sequence:
    """Gives the sequence blocks for all its tokens, and `computed` of them their K/V."""
    blocks = kv.allocate(0, sequence.num_tokens)
    assert blocks is not None
    sequence.block_ids, sequence.num_computed_tokens = blocks, computed
    sequence.num_published_blocks = kv.publish(sequence)
    return sequence


def released(kv: KVCacheManager, sequence: Sequence, *, keep: bool = True) -> None:
    kv.free(sequence, keep=keep)
    sequence.block_ids, sequence.num_computed_tokens, sequence.num_published_blocks = [], 0, 0


def test_allocate_adds_just_the_blocks_that_the_tokens_lack() -> None:
    kv = a_manager()

    assert kv.allocate(0, 5) == [1, 2]
    assert kv.allocate(2, 8) == []
    assert kv.allocate(2, 9) == [3]


def test_allocate_takes_nothing_where_not_all_is_free() -> None:
    kv = a_manager(blocks=2)

    assert kv.allocate(0, 9) is None
    assert kv.num_free_blocks == 2


def test_usage_counts_blocks_that_sequences_hold_and_not_a_warm_cache() -> None:
    kv = a_manager(blocks=4)
    sequence = holding(kv, a_sequence(8), computed=8)
    assert kv.usage == 0.5

    released(kv, sequence)

    assert kv.usage == 0
    assert kv.num_free_blocks == 4
    assert kv.match_prefix(a_sequence([*sequence.token_ids, 1])) == [1, 2]


def test_usage_counts_a_shared_block_once() -> None:
    kv = a_manager(blocks=4)
    first = holding(kv, a_sequence(8), computed=8)
    hits = kv.match_prefix(a_sequence([*first.token_ids, 1]))

    kv.share(hits)

    assert kv.num_used_blocks == 2


def test_waste_is_the_unused_slots_over_the_allocated_ones() -> None:
    kv = a_manager()
    sequence = holding(kv, a_sequence(5), computed=5)

    assert kv.waste([sequence]) == 3 / 8
    released(kv, sequence)
    assert kv.waste([]) == 0


def test_a_full_hit_leaves_the_last_token_to_compute() -> None:
    """Its logits are needed; and a block that is shared is never written to."""
    kv = a_manager()
    first = holding(kv, a_sequence(8), computed=8)

    assert len(kv.match_prefix(a_sequence(first.token_ids))) == 1
    assert len(kv.match_prefix(a_sequence([*first.token_ids, 1]))) == 2


def test_only_computed_blocks_are_found() -> None:
    kv = a_manager()
    first = holding(kv, a_sequence(12), computed=7)
    later = a_sequence([*first.token_ids, 1])
    assert kv.match_prefix(later) == first.block_ids[:1]

    first.num_computed_tokens = 12
    first.num_published_blocks = kv.publish(first)

    assert kv.match_prefix(later) == first.block_ids


def test_another_salt_finds_nothing() -> None:
    kv = a_manager()
    first = holding(kv, a_sequence(8, salt="mine"), computed=8)

    assert kv.match_prefix(a_sequence([*first.token_ids, 1], salt="theirs")) == []
    assert kv.match_prefix(a_sequence([*first.token_ids, 1])) == []
    assert len(kv.match_prefix(a_sequence([*first.token_ids, 1], salt="mine"))) == 2


def test_prompt_logprobs_read_no_hits_but_leave_blocks_for_others() -> None:
    kv, asks = a_manager(), SamplingParams(prompt_logprobs=0)
    first = holding(kv, a_sequence(8, params=asks), computed=8)

    assert kv.match_prefix(a_sequence([*first.token_ids, 1], params=asks)) == []
    assert len(kv.match_prefix(a_sequence([*first.token_ids, 1]))) == 2


def test_without_prefix_caching_nothing_is_found_and_nothing_hashed() -> None:
    kv = a_manager(prefix_caching=False)
    first = holding(kv, a_sequence(8), computed=8)

    assert kv.match_prefix(a_sequence([*first.token_ids, 1])) == []
    assert first.block_hashes == []


def test_a_reused_block_is_not_found_by_what_it_held() -> None:
    kv = a_manager(blocks=2)
    first = holding(kv, a_sequence(8), computed=8)
    released(kv, first)

    assert kv.allocate(0, 4) == [2]

    assert kv.match_prefix(a_sequence([*first.token_ids, 1])) == [1]


def test_blocks_that_are_not_kept_are_found_by_nobody_even_while_others_hold_them() -> None:
    kv = a_manager()
    first = holding(kv, a_sequence(8), computed=8)
    kv.share(first.block_ids)

    released(kv, first, keep=False)

    assert kv.match_prefix(a_sequence([*first.token_ids, 1])) == []
    assert kv.num_used_blocks == 2


@pytest.mark.parametrize(("spare", "fits"), [(1, True), (2, False)])
def test_free_hits_count_as_taken_when_asking_whether_a_prompt_fits(spare: int, fits: bool) -> None:
    """4 blocks, 2 of them free with the prompt's beginning: taking those and 1 more leaves 1."""
    kv = a_manager(blocks=4)
    first = holding(kv, a_sequence(8), computed=8)
    released(kv, first)
    later = a_sequence([*first.token_ids, 1])

    assert kv.can_hold(later, kv.match_prefix(later), spare_blocks=spare) is fits


def test_held_hits_cost_nothing() -> None:
    kv = a_manager(blocks=3)
    first = holding(kv, a_sequence(8), computed=8)
    later = a_sequence([*first.token_ids, 1])

    assert kv.can_hold(later, kv.match_prefix(later), spare_blocks=0)
    assert not kv.can_hold(later, [], spare_blocks=0)


def test_integrity_check_sees_a_block_shared_by_different_prefixes() -> None:
    kv = a_manager()
    first, second = holding(kv, a_sequence(4), computed=4), a_sequence(4)
    kv.share(first.block_ids)
    second.block_ids, second.num_computed_tokens = list(first.block_ids), 4

    with pytest.raises(AssertionError, match="different prefixes"):
        kv.check_integrity([first, second])


def test_integrity_check_sees_a_block_table_with_a_block_twice_or_too_few() -> None:
    kv = a_manager()
    sequence = holding(kv, a_sequence(4), computed=4)
    kv.check_integrity([sequence])

    sequence.num_computed_tokens = 5
    with pytest.raises(AssertionError, match="without a block"):
        kv.check_integrity([sequence])

    kv.share(sequence.block_ids)
    sequence.block_ids = [BlockId(1), BlockId(1)]
    with pytest.raises(AssertionError, match="twice"):
        kv.check_integrity([sequence])
