"""Finds computed blocks by what they hold, so that equal prompt beginnings are computed once.

A block's name is the hash of everything its K/V depend on:

    H_i = blake2b-128(H_{i-1} ‖ tokens_i ‖ extra)        H_{-1} = 16 zero bytes

over canonical bytes (tokens as 32-bit little-endian words), never Python's `hash()`: equal in every process and every
release. `extra` is what beside tokens changes K/V or must not be shared: adapter, cache salt, later image hashes.
The cache maps names to blocks and back; who holds a block and when it is reused is the BlockPool's business.
Only blocks whose K/V exist are published.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence as Seq
from hashlib import blake2b

from octavo_server.engine.outputs import BlockId

_ROOT = bytes(16)


def canonical_extra(*parts: str) -> bytes:
    """Joins parts (adapter, cache salt …) so that no two different lists give equal bytes; all empty gives none."""
    if not any(parts):
        return b""
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    return b"".join(struct.pack("<I", len(part)) + part for part in encoded)


class PrefixCache:
    """A two-way map between block hashes and block ids."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._block_of: dict[bytes, BlockId] = {}
        self._hash_of: dict[BlockId, bytes] = {}
        self._tokens = struct.Struct(f"<{block_size}I")

    def __len__(self) -> int:
        return len(self._block_of)

    def __contains__(self, block_id: object) -> bool:
        """Whether the block has published content."""
        return block_id in self._hash_of

    def extend_hashes(self, hashes: list[bytes], token_ids: Seq[int], extra: bytes, num_blocks: int) -> None:
        """Appends to `hashes` until the first `num_blocks` full blocks of `token_ids` have theirs."""
        size = self.block_size
        previous = hashes[-1] if hashes else _ROOT
        for i in range(len(hashes), num_blocks):
            words = self._tokens.pack(*token_ids[i * size : (i + 1) * size])
            previous = blake2b(previous + words + extra, digest_size=16).digest()
            hashes.append(previous)

    def match(self, hashes: Seq[bytes], max_blocks: int) -> list[BlockId]:
        """Blocks of the longest published beginning, at most `max_blocks`."""
        blocks: list[BlockId] = []
        for i in range(max_blocks):
            block_id = self._block_of.get(hashes[i])
            if block_id is None:
                break
            blocks.append(block_id)
        return blocks

    def publish(self, block_id: BlockId, block_hash: bytes) -> None:
        """Makes a computed block findable; of two blocks with equal content the first stays the one that is found."""
        if block_hash not in self._block_of:
            self._block_of[block_hash] = block_id
            self._hash_of[block_id] = block_hash

    def forget(self, block_id: BlockId) -> None:
        """The block is about to hold something else, or its content is not to be trusted."""
        block_hash = self._hash_of.pop(block_id, None)
        if block_hash is not None:
            del self._block_of[block_hash]

    def check_integrity(self) -> None:
        """Both maps say the same."""
        assert {block_id: block_hash for block_hash, block_id in self._block_of.items()} == self._hash_of
