"""Memory for the scheduler: blocks for a range of tokens, prefix hits, and how full the cache is.

The only user of BlockPool and PrefixCache. It decides nothing: it says what fits and does what it is told. It reads
sequences and returns blocks; the Scheduler writes them into the sequence. (`block_hashes` is a memo that it extends.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from octavo_server.engine.block_pool import BlockPool
from octavo_server.engine.outputs import BlockId
from octavo_server.engine.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from octavo_server.engine.sequence import Sequence


class KVCacheManager:
    """Owns the pool and the prefix cache of one engine."""

    def __init__(self, *, num_blocks: int, block_size: int, enable_prefix_caching: bool = True) -> None:
        """`num_blocks` counts the null block 0."""
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._pool = BlockPool(num_blocks)
        self._cache = PrefixCache(block_size)

    @property
    def num_usable_blocks(self) -> int:
        return self._pool.num_usable

    @property
    def num_free_blocks(self) -> int:
        """Free blocks; those that only the prefix cache keeps count."""
        return self._pool.num_free

    @property
    def num_used_blocks(self) -> int:
        """Blocks that sequences hold, shared ones once."""
        return self._pool.num_used

    @property
    def capacity_tokens(self) -> int:
        """Tokens of the longest sequence that fits when it is alone."""
        return self._pool.num_usable * self.block_size

    @property
    def usage(self) -> float:
        """Held blocks over all blocks, 0 to 1; a warm prefix cache alone is 0."""
        return self._pool.num_used / self._pool.num_usable

    def waste(self, running: Iterable[Sequence]) -> float:
        """Slots allocated and not used over slots allocated, 0 to 1; shared blocks count once."""
        allocated = self._pool.num_used * self.block_size
        unused = sum(len(seq.block_ids) * self.block_size - seq.num_computed_tokens for seq in running)
        return unused / allocated if allocated else 0.0

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def match_prefix(self, sequence: Sequence) -> list[BlockId]:
        """Computed blocks that the sequence may share; never its last token, whose logits are still needed."""
        if not (self.enable_prefix_caching and sequence.reads_prefix_cache):
            return []
        max_blocks = (sequence.num_tokens - 1) // self.block_size
        self._cache.extend_hashes(sequence.block_hashes, sequence.token_ids, sequence.prefix_extra, max_blocks)
        return self._cache.match(sequence.block_hashes, max_blocks)

    def can_hold(self, sequence: Sequence, hits: list[BlockId], *, spare_blocks: int) -> bool:
        """Whether all known tokens of a waiting sequence fit and leave `spare_blocks` free."""
        new = self.blocks_for(sequence.num_tokens) - len(hits)
        return new + self._pool.count_free(hits) + spare_blocks <= self._pool.num_free

    def share(self, hits: list[BlockId]) -> None:
        """Takes a reference to each block of a prefix hit."""
        self._pool.share(hits)

    def allocate(self, num_held: int, num_tokens: int) -> list[BlockId] | None:
        """Blocks to add to `num_held` so that `num_tokens` tokens have slots; None if that many are not free."""
        missing = self.blocks_for(num_tokens) - num_held
        if missing <= 0:
            return []
        if missing > self._pool.num_free:
            return None
        taken = self._pool.allocate(missing)
        for block_id in taken:
            self._cache.forget(block_id)
        return taken

    def publish(self, sequence: Sequence) -> int:
        """Lets others find the sequence's full computed blocks; returns how many leading blocks are published."""
        full = sequence.num_computed_tokens // self.block_size
        if not self.enable_prefix_caching:
            return full
        hashes = sequence.block_hashes
        self._cache.extend_hashes(hashes, sequence.token_ids, sequence.prefix_extra, full)
        for i in range(sequence.num_published_blocks, full):
            self._cache.publish(sequence.block_ids[i], hashes[i])
        return full

    def free(self, sequence: Sequence, *, keep: bool) -> None:
        """Drops the sequence's references; without `keep` nobody will find what its blocks hold."""
        if not keep:
            for block_id in sequence.block_ids:
                self._cache.forget(block_id)
        self._pool.release(sequence.block_ids, retained=self._cache)

    def check_integrity(self, sequences: Collection[Sequence]) -> None:
        """Compares pool and cache with the block tables of all live sequences; for tests, O(blocks + tokens)."""
        held = Counter(block_id for seq in sequences for block_id in seq.block_ids)
        self._pool.check_integrity(held, retained=self._cache)
        self._cache.check_integrity()
        content: dict[BlockId, tuple[int, list[int], bytes]] = {}
        for seq in sequences:
            assert len(seq.block_ids) == len(set(seq.block_ids)), "a sequence holds a block twice"
            assert len(seq.block_ids) >= self.blocks_for(seq.num_computed_tokens), "computed tokens without a block"
            for i, block_id in enumerate(seq.block_ids):
                if held[block_id] > 1:
                    mine = (i, seq.token_ids[: (i + 1) * self.block_size], seq.prefix_extra)
                    assert content.setdefault(block_id, mine) == mine, (
                        f"block {block_id} is shared by different prefixes"
                    )
