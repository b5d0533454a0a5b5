"""Turns a step's decision into tensors.

    SchedulerOutput (sequences, token ranges) -> ForwardBatch (flat rows, block tables, which rows need logits)

Rows of the sequences follow each other in the order of `scheduled`. Numpy buffers are allocated once and grow; only what
a step uses is copied to the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from octavo_kernels.backend import AttentionBatch

if TYPE_CHECKING:
    from octavo_server.engine.outputs import ScheduledSequence, SchedulerOutput, SequenceId
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


class BatchBuilder:
    """Owns the buffers; the tensors of a batch are valid until the next `build`."""

    def __init__(self, block_size: int, vocab_size: int, device: torch.device) -> None:
        self._block_size = block_size
        self._vocab_size = vocab_size
        self._device = device
        self._token_ids = np.zeros(0, dtype=np.int64)
        self._positions = np.zeros(0, dtype=np.int64)
        self._slots = np.zeros(0, dtype=np.int64)
        self._block_tables = np.zeros((0, 0), dtype=np.int32)

    def build(self, output: SchedulerOutput) -> ForwardBatch:
        """The tensors of `output`, which schedules at least one token."""
        scheduled = output.scheduled
        starts = np.array([item.start for item in scheduled], dtype=np.int64)
        counts = np.array([item.num_tokens for item in scheduled], dtype=np.int64)
        ends = starts + counts
        first_rows = np.zeros(len(scheduled) + 1, dtype=np.int64)
        np.cumsum(counts, out=first_rows[1:])
        num_tokens, num_blocks = int(first_rows[-1]), -(-int(ends.max()) // self._block_size)
        self._reserve(num_tokens, len(scheduled), num_blocks)
        token_ids = self._fill_token_ids(output, first_rows)
        invalid = self._replace_invalid(output, token_ids, first_rows)
        positions = self._positions[:num_tokens]
        # Row r of a sequence that starts at row f and position s stands at position r - f + s.
        np.add(np.arange(num_tokens), np.repeat(starts - first_rows[:-1], counts), out=positions)
        tables = self._fill_block_tables(output, ends, num_blocks)
        owners = np.repeat(np.arange(len(scheduled)), counts)
        slots = self._slots[:num_tokens]
        np.multiply(tables[owners, positions // self._block_size], self._block_size, out=slots, dtype=np.int64)
        slots += positions % self._block_size
        last_rows = (first_rows[1:] - 1).tolist()
        samples, sample_rows = _last_rows(output, last_rows, [item.samples for item in output.scheduled])
        pooled, pooled_rows = _last_rows(output, last_rows, [item.pools for item in output.scheduled])
        targets, target_rows = _prompt_targets(output, first_rows)
        rows = sample_rows + pooled_rows + target_rows
        return ForwardBatch(
            token_ids=self._tensor(token_ids),
            positions=self._tensor(positions),
            attention=AttentionBatch(
                query_start_loc=self._tensor(first_rows.astype(np.int32)),
                seq_lens=self._tensor(ends.astype(np.int32)),
                block_tables=self._tensor(tables),
                slot_mapping=self._tensor(slots),
                max_query_len=int(counts.max()),
                max_seq_len=int(ends.max()),
            ),
            logit_rows=None if len(sample_rows) == len(rows) == num_tokens else self._tensor(np.array(rows, np.int64)),
            samples=samples,
            pooled=pooled,
            prompt_targets=targets,
            invalid=invalid,
        )

    def _reserve(self, num_tokens: int, num_sequences: int, num_blocks: int) -> None:
        if num_tokens > self._token_ids.size:
            self._token_ids, self._positions, self._slots = (np.zeros(num_tokens, dtype=np.int64) for _ in range(3))
        rows, columns = self._block_tables.shape
        if num_sequences > rows or num_blocks > columns:
            self._block_tables = np.zeros((max(rows, num_sequences), max(columns, 2 * num_blocks)), dtype=np.int32)

    def _fill_token_ids(self, output: SchedulerOutput, first_rows: NDArray[np.int64]) -> NDArray[np.int64]:
        token_ids = self._token_ids[: int(first_rows[-1])]
        if token_ids.size == len(output.scheduled):
            # Decodes alone: one list for all is far cheaper than a slice each.
            token_ids[:] = [item.sequence.token_ids[item.start] for item in output.scheduled]
            return token_ids
        for item, row in zip(output.scheduled, first_rows, strict=False):
            end = item.start + item.num_tokens
            token_ids[row : row + item.num_tokens] = item.sequence.token_ids[item.start : end]
        return token_ids

    def _fill_block_tables(
        self, output: SchedulerOutput, ends: NDArray[np.int64], num_blocks: int
    ) -> NDArray[np.int32]:
        # A view: rows keep the buffer's stride, so they are made contiguous once, when they become a tensor.
        tables = self._block_tables[: len(output.scheduled), :num_blocks]
        tables[:] = 0
        needed = -(-ends // self._block_size)
        for row, (item, count) in enumerate(zip(output.scheduled, needed, strict=True)):
            tables[row, :count] = item.sequence.block_ids[:count]
        return tables

    def _replace_invalid(
        self, output: SchedulerOutput, token_ids: NDArray[np.int64], first_rows: NDArray[np.int64]
    ) -> dict[SequenceId, str]:
        bad = (token_ids < 0) | (token_ids >= self._vocab_size)
        if not bad.any():
            return {}
        message = "token id {} is not in the vocabulary of {} tokens"
        owners = np.searchsorted(first_rows, np.flatnonzero(bad), side="right") - 1
        found = {
            output.scheduled[owner].sequence.sequence_id: message.format(token_ids[row], self._vocab_size)
            for owner, row in zip(owners, np.flatnonzero(bad), strict=True)
        }
        token_ids[bad] = 0
        return found

    def _tensor(self, values: NDArray[np.int64] | NDArray[np.int32]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device)


def _last_rows(
    output: SchedulerOutput, last_rows: list[int], wanted: list[bool]
) -> tuple[tuple[ScheduledSequence, ...], list[int]]:
    """The wanted sequences and the rows of their last tokens."""
    chosen = [
        (item, row) for item, row, is_wanted in zip(output.scheduled, last_rows, wanted, strict=True) if is_wanted
    ]
    return tuple(item for item, _ in chosen), [row for _, row in chosen]


def _prompt_targets(
    output: SchedulerOutput, first_rows: NDArray[np.int64]
) -> tuple[tuple[PromptTarget, ...], list[int]]:
    targets: list[PromptTarget] = []
    rows: list[int] = []
    for item, first_row in zip(output.scheduled, first_rows.tolist(), strict=False):
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
