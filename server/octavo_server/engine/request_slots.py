"""What a device keeps of each sequence that runs, by stable slot: block table, sampling parameters, last token.

A slot belongs to a sequence for as long as the sequence is in every step: what runs always is. One that was preempted,
left out or has ended gives its slot back, and one that comes anew brings all it has; in between only new blocks are
copied. Tokens are none of it but the last: a prompt's are copied once, when they are computed, and a table for all
contexts would take gigabytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from octavo_kernels.batches import NULL_BLOCK, SamplingBatch
from octavo_server.engine.transfers import upload

if TYPE_CHECKING:
    from collections.abc import Sequence as Items

    from octavo_server.engine.outputs import ScheduledSequence, SequenceId
    from octavo_server.engine.sequence import Sequence


@dataclass(slots=True, kw_only=True)
class _Slot:
    index: int
    num_preemptions: int
    """Of the sequence, when it came."""
    num_blocks: int = 0
    """That the table has."""


class RequestSlots:
    """Owns the tables. Slot `padding` is nobody's: its blocks are null blocks, its temperature 0."""

    def __init__(self, *, num_slots: int, max_blocks: int, block_size: int, device: torch.device) -> None:
        self.block_size = block_size
        self.padding = num_slots
        rows = num_slots + 1
        # [rows, a multiple of 16 that is at least max_blocks] int32
        max_blocks = -(-max_blocks // 16) * 16
        self.block_tables = torch.full((rows, max_blocks), NULL_BLOCK, dtype=torch.int32, device=device)
        # [rows] int64: the token that was sampled last
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        # Each [rows], and a tensor of its own: Triton would compile kernels anew for parts of one that lie otherwise.
        self._temperature, self._top_p, self._min_p = (torch.zeros(rows, device=device) for _ in range(3))
        self._top_k = torch.zeros(rows, dtype=torch.int32, device=device)
        self._seed = torch.zeros(rows, dtype=torch.int64, device=device)
        self._device = device
        self._taken: dict[SequenceId, _Slot] = {}
        self._free = list(range(num_slots - 1, -1, -1))

    def place(self, items: Items[ScheduledSequence]) -> list[int]:
        """The slots of a step's sequences, with everything of theirs on its way to the tables."""
        for sequence_id in self._taken.keys() - [item.sequence.sequence_id for item in items]:
            self._free.append(self._taken.pop(sequence_id).index)
        come: list[tuple[int, Sequence]] = []
        places: list[int] = []
        blocks: list[int] = []
        slots: list[int] = []
        for sequence in [item.sequence for item in items]:
            slot = self._taken.get(sequence.sequence_id)
            if slot is None or slot.num_preemptions != sequence.num_preemptions:
                index = self._free.pop() if slot is None else slot.index
                slot = _Slot(index=index, num_preemptions=sequence.num_preemptions)
                self._taken[sequence.sequence_id] = slot
                come.append((index, sequence))
            held = len(sequence.block_ids)
            if held > slot.num_blocks:
                first = slot.index * self.block_tables.shape[1]
                places += range(first + slot.num_blocks, first + held)
                blocks += sequence.block_ids[slot.num_blocks :]
                slot.num_blocks = held
            slots.append(slot.index)
        self._copy_blocks(places, blocks)
        self._copy_parameters(come)
        return slots

    def forget(self) -> None:
        """Gives all slots back: what a step that failed has left in the tables is not known."""
        self._free += [slot.index for slot in self._taken.values()]
        self._taken.clear()

    def sampling(self, slots: torch.Tensor, positions: torch.Tensor, *, all_greedy: bool) -> SamplingBatch:
        """slots: [n] int64; positions: [n] int64, of the tokens to sample -> the parameters of those rows."""
        return SamplingBatch(
            temperature=self._temperature[slots],
            top_k=self._top_k[slots],
            top_p=self._top_p[slots],
            min_p=self._min_p[slots],
            seed=self._seed[slots],
            position=positions,
            all_greedy=all_greedy,
        )

    def keep_tokens(self, slots: torch.Tensor, tokens: torch.Tensor) -> None:
        """slots, tokens: [n] int64; what stands instead of a token is kept as token 0, and its sequence ends."""
        self.tokens.index_copy_(0, slots, tokens.clamp(min=0))

    def _copy_blocks(self, places: list[int], blocks: list[int]) -> None:
        if places:
            copied = upload([places, blocks], np.int64, self._device)
            self.block_tables.view(-1).index_copy_(0, copied[0], copied[1].int())

    def _copy_parameters(self, come: list[tuple[int, Sequence]]) -> None:
        if not come:
            return
        params = [sequence.request.params for _, sequence in come]
        indices = upload([index for index, _ in come], np.int64, self._device)
        columns: list[tuple[torch.Tensor, list[float] | list[int], type[np.generic]]] = [
            (self._temperature, [p.temperature for p in params], np.float32),
            (self._top_k, [max(p.top_k, 0) for p in params], np.int32),
            (self._top_p, [p.top_p for p in params], np.float32),
            (self._min_p, [p.min_p for p in params], np.float32),
            (self._seed, [signed(sequence.seed) for _, sequence in come], np.int64),
        ]
        for table, values, dtype in columns:
            table.index_copy_(0, indices, upload(values, dtype, self._device))


def signed(seed: int) -> int:
    """The low 64 bits of any integer, as int64 has them."""
    return int(np.uint64(seed & 0xFFFF_FFFF_FFFF_FFFF).astype(np.int64))
