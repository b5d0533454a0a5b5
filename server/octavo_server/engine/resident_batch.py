"""As batch.py, for a device that keeps what it can: the host hands over slots, places and new tokens, in one copy.

Positions, slot mapping, block tables and sampling parameters are made on the device. A token that has not come to the host
yet is -1, and the one that its slot keeps is taken. On a CPU the lists of batch.py are faster, where one of these
operations takes as long as a few sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch

from octavo_kernels.batches import NULL_BLOCK, PAD_SLOT, AttentionBatch
from octavo_server.engine.batch import ForwardBatch, LogitRows, logit_rows, replace_invalid
from octavo_server.engine.transfers import upload

if TYPE_CHECKING:
    from octavo_server.engine.outputs import SchedulerOutput, SequenceId
    from octavo_server.engine.request_slots import RequestSlots

NOT_KNOWN = -1
"""A token that is still on the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedStep:
    """A step's decision in numbers; what else a sequence has lies in its slot."""

    slots: list[int]
    """Of each sequence, as the next two."""
    starts: list[int]
    """Positions of their first tokens of this step."""
    counts: list[int]
    """How many of their tokens are computed."""
    token_ids: list[int]
    """Of all of them, NOT_KNOWN where one has not come to the host yet."""
    rows: LogitRows
    invalid: dict[SequenceId, str]
    """As in ForwardBatch."""

    @property
    def is_plain(self) -> bool:
        """Whether each sequence computes one token, and samples the next."""
        return len(self.rows.samples) == len(self.rows.rows) == len(self.token_ids)

    @property
    def all_greedy(self) -> bool:
        return all(item.sequence.request.params.temperature == 0.0 for item in self.rows.samples)


class ResidentBatchBuilder:
    """Fills the slots of what is scheduled and makes the step's tensors of them."""

    def __init__(self, slots: RequestSlots, vocab_size: int, device: torch.device) -> None:
        self.slots = slots
        self._vocab_size = vocab_size
        self._device = device

    def build(self, output: SchedulerOutput) -> ForwardBatch:
        """As `BatchBuilder.build`."""
        return self.batch(self.place(output))

    def place(self, output: SchedulerOutput) -> PlacedStep:
        """The step as the host knows it, with all that its slots need on the way to them."""
        token_ids: list[int] = []
        unknown: list[int] = []
        for item in output.scheduled:
            known, start, count = item.sequence.token_ids, item.start, item.num_tokens
            if start < len(known):
                token_ids += known[start : start + count]
            if start + count > len(known):
                unknown.append(len(token_ids))
                token_ids.append(0)
        counts = [item.num_tokens for item in output.scheduled]
        first_rows = [0, *accumulate(counts)]
        invalid = replace_invalid(output, token_ids, first_rows, self._vocab_size)
        for row in unknown:
            token_ids[row] = NOT_KNOWN
        return PlacedStep(
            slots=self.slots.place(output.scheduled),
            starts=[item.start for item in output.scheduled],
            counts=counts,
            token_ids=token_ids,
            rows=logit_rows(output, first_rows),
            invalid=invalid,
        )

    def batch(self, step: PlacedStep) -> ForwardBatch:
        """Its tensors."""
        rows, counts = step.rows, step.counts
        wanted = [] if step.is_plain else rows.rows
        parts = (step.slots, step.starts, counts, step.token_ids, wanted, [] if step.is_plain else rows.sampled)
        words = upload([number for part in parts for number in part], np.int64, self._device)
        slots, starts, num, ids, wanted_rows, sampled = torch.split(words, [len(part) for part in parts])
        ids, positions, attention = prepare(
            self.slots,
            slots,
            starts,
            None if max(counts) == 1 else num,
            ids,
            query_lens=(min(counts), max(counts)),
            max_seq_len=max(start + count for start, count in zip(step.starts, counts, strict=True)),
        )
        # Sampled rows stand first, and each is the last of its sequence.
        last = positions if step.is_plain else positions[wanted_rows[: len(rows.samples)]]
        sampled_slots = slots if step.is_plain else slots[sampled]
        return ForwardBatch(
            token_ids=ids,
            positions=positions,
            attention=attention,
            logit_rows=None if step.is_plain else wanted_rows,
            samples=rows.samples,
            pooled=rows.pooled,
            prompt_targets=rows.targets,
            invalid=step.invalid,
            sampling=self.slots.sampling(sampled_slots, last + 1, all_greedy=step.all_greedy) if rows.samples else None,
            sampled_slots=sampled_slots if rows.samples else None,
        )


def table_width(max_seq_len: int, block_size: int) -> int:
    """Blocks, a multiple of 16: Triton would compile kernels anew for a stride that is 1, or no such multiple."""
    return -(-max_seq_len // (16 * block_size)) * 16


def prepare(
    tables: RequestSlots,
    slots: torch.Tensor,
    starts: torch.Tensor,
    counts: torch.Tensor | None,
    token_ids: torch.Tensor,
    *,
    query_lens: tuple[int, int],
    max_seq_len: int,
) -> tuple[torch.Tensor, torch.Tensor, AttentionBatch]:
    """Token ids, positions and attention of a step, on the device from what is there.

    Args:
        tables: of the slots.
        slots: [num_seqs] int64.
        starts: [num_seqs] int64, the position of each sequence's first token of this step.
        counts: [num_seqs] int64, how many of its tokens are computed; None: one each.
        token_ids: [num_tokens] int64, NOT_KNOWN where the slot's last token is meant.
        query_lens: the least and the most of `counts`.
        max_seq_len: tokens of the longest sequence at most.
    """
    size, num_seqs, num_tokens = tables.block_size, slots.shape[0], token_ids.shape[0]
    first_rows = torch.arange(num_seqs + 1, dtype=torch.int64, device=slots.device)
    if counts is None:
        # A copy, which begins where memory does: Triton would compile kernels anew for a part that does not.
        owners, positions, seq_lens = first_rows[:-1], starts.clone(), starts + 1
    else:
        torch.cumsum(counts, 0, out=first_rows[1:])
        rows = torch.arange(num_tokens, dtype=torch.int64, device=slots.device)
        owners = torch.searchsorted(first_rows[1:], rows, right=True)
        positions, seq_lens = (starts - first_rows[:-1])[owners] + rows, starts + counts
    # block_tables: [num_seqs, blocks of the longest] int32; behind a sequence's end lie those of who had the slot before
    block_tables = tables.block_tables[:, : table_width(max_seq_len, size)].index_select(0, slots)
    first_positions = torch.arange(0, block_tables.shape[1] * size, size, device=slots.device)
    block_tables.masked_fill_(first_positions >= seq_lens.unsqueeze(1), NULL_BLOCK)
    blocks = block_tables[owners, positions // size].long()
    attention = AttentionBatch(
        query_start_loc=first_rows.int(),
        seq_lens=seq_lens.int(),
        block_tables=block_tables,
        # What fills a step up has null blocks alone, and is written nowhere.
        slot_mapping=torch.where(blocks == NULL_BLOCK, PAD_SLOT, blocks * size + positions % size),
        max_query_len=query_lens[1],
        max_seq_len=max_seq_len,
        min_query_len=query_lens[0],
    )
    token_ids = torch.where(token_ids == NOT_KNOWN, tables.tokens[slots[owners]], token_ids)
    return token_ids, positions, attention
