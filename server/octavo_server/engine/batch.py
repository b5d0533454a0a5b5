"""Turns a step's decision into tensors.

    SchedulerOutput (sequences, token ranges) -> ForwardBatch (flat rows, block tables, which rows need logits)

Rows of the sequences follow each other in the order of `scheduled`.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from octavo_kernels.batches import AttentionBatch, SamplingBatch
from octavo_server.engine.transfers import upload

if TYPE_CHECKING:
    from octavo_server.engine.outputs import BlockId, ScheduledSequence, SchedulerOutput, SequenceId
    from octavo_server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTarget:
    """A prompt token whose log-probability is asked for; its logits stand in the row of the token before it."""

    sequence: Sequence
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """One step's tensors. `decoder.forward` gives the rows of sampled tokens, of pooled ones, then of prompt targets."""

    token_ids: torch.Tensor
    """[num_tokens] int64."""
    positions: torch.Tensor
    """[num_tokens] int64."""
    attention: AttentionBatch
    logit_rows: torch.Tensor | None
    """[len(samples) + len(pooled) + len(prompt_targets)] int64; None: all rows, in order."""
    samples: tuple[ScheduledSequence, ...]
    pooled: tuple[ScheduledSequence, ...]
    prompt_targets: tuple[PromptTarget, ...]
    invalid: dict[SequenceId, str]
    """Sequences with a token id that the model does not have; they are computed as token 0 and must end."""
    sampling: SamplingBatch | None = None
    """Of `samples`, where the device keeps their parameters."""
    sampled_slots: torch.Tensor | None = None
    """[len(samples)] int64, where the device keeps their last tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitRows:
    """Which rows of a step need logits, and for whom."""

    samples: tuple[ScheduledSequence, ...]
    sampled: list[int]
    """Places of `samples` among what is scheduled."""
    pooled: tuple[ScheduledSequence, ...]
    targets: tuple[PromptTarget, ...]
    rows: list[int]
    """Of all of them, in this order."""


class StepBuilder(Protocol):
    """Makes tensors of a step's decision."""

    def build(self, output: SchedulerOutput) -> ForwardBatch:
        """The tensors of `output`, which schedules at least one token."""


class BatchBuilder:
    """Owns the buffer of block tables; the tensors of a batch are valid until the next `build`.

    Lists, and one array of each: a step of a few tokens would spend most of this time on starting numpy's operations.
    """

    def __init__(self, block_size: int, vocab_size: int, device: torch.device) -> None:
        self._block_size = block_size
        self._vocab_size = vocab_size
        self._device = device
        self._block_tables = np.zeros((0, 0), dtype=np.int32)

    def build(self, output: SchedulerOutput) -> ForwardBatch:
        """The tensors of `output`, which schedules at least one token."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        first_rows = [0]
        for item in output.scheduled:
            end = item.start + item.num_tokens
            token_ids += item.sequence.token_ids[item.start : end]
            positions += range(item.start, end)
            slots += _slots(item.sequence.block_ids, item.start, end, self._block_size)
            first_rows.append(len(token_ids))
        ends = [item.start + item.num_tokens for item in output.scheduled]
        invalid = replace_invalid(output, token_ids, first_rows, self._vocab_size)
        rows, device = logit_rows(output, first_rows), self._device
        is_plain = len(rows.samples) == len(rows.rows) == len(token_ids)
        return ForwardBatch(
            token_ids=upload(token_ids, np.int64, device),
            positions=upload(positions, np.int64, device),
            attention=AttentionBatch(
                query_start_loc=upload(first_rows, np.int32, device),
                seq_lens=upload(ends, np.int32, device),
                block_tables=upload(self._fill_block_tables(output, ends), np.int32, device),
                slot_mapping=upload(slots, np.int64, device),
                max_query_len=max(item.num_tokens for item in output.scheduled),
                max_seq_len=max(ends),
                min_query_len=min(item.num_tokens for item in output.scheduled),
            ),
            logit_rows=None if is_plain else upload(rows.rows, np.int64, device),
            samples=rows.samples,
            pooled=rows.pooled,
            prompt_targets=rows.targets,
            invalid=invalid,
        )

    def _fill_block_tables(self, output: SchedulerOutput, ends: list[int]) -> NDArray[np.int32]:
        needed = [-(-end // self._block_size) for end in ends]
        num_sequences, num_blocks = len(needed), max(needed)
        rows, columns = self._block_tables.shape
        if num_sequences > rows or num_blocks > columns:
            self._block_tables = np.zeros((max(rows, num_sequences), max(columns, 2 * num_blocks)), dtype=np.int32)
        # A view: rows keep the buffer's stride, so they are made contiguous once, when they become a tensor.
        tables = self._block_tables[:num_sequences, :num_blocks]
        tables[:] = 0
        for row, (item, count) in enumerate(zip(output.scheduled, needed, strict=True)):
            tables[row, :count] = item.sequence.block_ids[:count]
        return tables


def replace_invalid(
    output: SchedulerOutput, token_ids: list[int], first_rows: list[int], vocab_size: int
) -> dict[SequenceId, str]:
    """Token 0 for each id that the model does not have -> the sequences that had one."""
    if min(token_ids) >= 0 and max(token_ids) < vocab_size:
        return {}
    message = "token id {} is not in the vocabulary of {} tokens"
    found = {}
    for row, token_id in enumerate(token_ids):
        if not 0 <= token_id < vocab_size:
            owner = output.scheduled[bisect_right(first_rows, row) - 1].sequence.sequence_id
            found[owner] = message.format(token_id, vocab_size)
            token_ids[row] = 0
    return found


def logit_rows(output: SchedulerOutput, first_rows: list[int]) -> LogitRows:
    """first_rows: of each scheduled sequence, and the end."""
    scheduled = output.scheduled
    sampled = [place for place, item in enumerate(scheduled) if item.samples]
    pooled = [place for place, item in enumerate(scheduled) if item.pools]
    targets, target_rows = _prompt_targets(output, first_rows)
    return LogitRows(
        samples=tuple(scheduled[place] for place in sampled),
        sampled=sampled,
        pooled=tuple(scheduled[place] for place in pooled),
        targets=targets,
        rows=[first_rows[place + 1] - 1 for place in sampled + pooled] + target_rows,
    )


def _slots(block_ids: list[BlockId], start: int, end: int, size: int) -> list[int]:
    """Of the positions from start to end, a block's run at a time."""
    slots: list[int] = []
    while start < end:
        stop = min(end, start - start % size + size)
        first = block_ids[start // size] * size + start % size
        slots += range(first, first + stop - start)
        start = stop
    return slots


def _prompt_targets(output: SchedulerOutput, first_rows: list[int]) -> tuple[tuple[PromptTarget, ...], list[int]]:
    targets: list[PromptTarget] = []
    rows: list[int] = []
    for item, first_row in zip(output.scheduled, first_rows, strict=False):
        sequence = item.sequence
        if sequence.request.params.prompt_logprobs is None:
            continue
        # Token p is predicted in the row of p - 1; what was reported before a preemption is not computed again.
        low = max(item.start + 1, sequence.num_reported_prompt_logprobs)
        high = min(item.start + item.num_tokens, sequence.num_prompt_tokens - 1)
        for position in range(low, high + 1):
            targets.append(PromptTarget(sequence=sequence, position=position))
            rows.append(first_row + position - 1 - item.start)
    return tuple(targets), rows
