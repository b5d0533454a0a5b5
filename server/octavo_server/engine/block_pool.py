"""Which block is used by whom, and which one to hand out next.

The pool knows numbers alone, no tokens and no hashes. Three states of a block:

| references | retained (has content worth keeping) | where |
|---|---|---|
| > 0 | either | held by sequences |
| 0 | no | `_blank`, a stack: reused first, the warmest in the processor's caches |
| 0 | yes | `_retained`, oldest first: reused last, least recently used first |

Both free states count as free everywhere. Block 0 is the null block: padding may be written to it, nobody owns it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable

from octavo_server.engine.outputs import BlockId

NULL_BLOCK = BlockId(0)


class BlockPool:
    """Owns the reference counts and the two free lists; every operation on one block is O(1)."""

    def __init__(self, num_blocks: int) -> None:
        """`num_blocks` counts the null block."""
        assert num_blocks >= 2, f"{num_blocks} blocks leave none to use beside the null block"
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        # Reversed, so that a fresh pool hands out 1, 2, 3 …
        self._blank = [BlockId(i) for i in range(num_blocks - 1, 0, -1)]
        self._retained: OrderedDict[BlockId, None] = OrderedDict()

    @property
    def num_usable(self) -> int:
        """All blocks but the null block."""
        return self.num_blocks - 1

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out, retained ones too."""
        return len(self._blank) + len(self._retained)

    @property
    def num_used(self) -> int:
        """Blocks that at least one sequence holds."""
        return self.num_blocks - 1 - len(self._blank) - len(self._retained)

    def references(self, block_id: BlockId) -> int:
        """How many sequences hold the block."""
        return self._references[block_id]

    def allocate(self, count: int) -> list[BlockId]:
        """Hands out `count` blocks with one reference each; the caller forgets what a retained one held."""
        assert count <= self.num_free, f"{count} blocks asked, {self.num_free} free"
        taken = [self._blank.pop() if self._blank else self._retained.popitem(last=False)[0] for _ in range(count)]
        for block_id in taken:
            self._references[block_id] = 1
        return taken

    def share(self, block_ids: Iterable[BlockId]) -> None:
        """Adds a reference to each block, taking free retained ones out of the middle of their list."""
        for block_id in block_ids:
            if self._references[block_id] == 0:
                del self._retained[block_id]
            self._references[block_id] += 1

    def count_free(self, block_ids: Iterable[BlockId]) -> int:
        """How many of the blocks nobody holds, so that sharing them makes that many fewer free."""
        references = self._references
        return sum(1 for block_id in block_ids if references[block_id] == 0)

    def release(self, block_ids: list[BlockId], retained: Container[BlockId]) -> None:
        """Drops a reference from each block of a chain, from its end.

        The end goes first so that it is also evicted first: a chain without its end is still a useful prefix, one
        without its beginning is not. Blocks in `retained` keep their content until they are handed out again.
        """
        for block_id in reversed(block_ids):
            self._references[block_id] -= 1
            if self._references[block_id] > 0:
                continue
            if block_id in retained:
                self._retained[block_id] = None
            else:
                self._blank.append(block_id)

    def check_integrity(self, expected: dict[BlockId, int], retained: Container[BlockId]) -> None:
        """Every block is in exactly one place, and the references are those `expected` of the block tables."""
        free = [*self._blank, *self._retained]
        assert len(free) == len(set(free)), "a block is free twice"
        assert NULL_BLOCK not in free, "the null block is free"
        assert NULL_BLOCK not in expected, "a sequence holds the null block"
        for i in range(1, self.num_blocks):
            block_id = BlockId(i)
            assert self._references[block_id] == expected.get(block_id, 0), f"block {block_id}: wrong reference count"
        assert set(free) == {i for i in range(1, self.num_blocks) if self._references[i] == 0}, "a block is lost"
        assert all(block_id in retained for block_id in self._retained), "a block is retained without content"
        assert not any(block_id in retained for block_id in self._blank), "a block with content is on the blank stack"
