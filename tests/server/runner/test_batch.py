"""Tensors of a step, computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo_server.engine.batch import BatchBuilder
from octavo_server.engine.outputs import BlockId, ScheduledSequence, SchedulerOutput, SequenceId
from octavo_server.engine.request import Request, SamplingParams
from octavo_server.engine.sequence import Sequence


def a_sequence(number: int, tokens: list[int], blocks: list[int], *, prompt: int = 0, **params: Any) -> Sequence:
    request = Request(
        request_id=str(number),
        prompt_token_ids=tuple(tokens[: prompt or len(tokens)]),
        params=SamplingParams(**params),
        arrival_s=0.0,
    )
    sequence = Sequence(sequence_id=SequenceId(number), request=request)
    sequence.token_ids = list(tokens)
    sequence.block_ids = [BlockId(block) for block in blocks]
    return sequence


def scheduled(sequence: Sequence, start: int, end: int) -> ScheduledSequence:
    return ScheduledSequence(
        sequence=sequence, start=start, num_tokens=end - start, samples=end == len(sequence.token_ids)
    )


def a_builder(vocab_size: int = 100) -> BatchBuilder:
    return BatchBuilder(4, vocab_size, torch.device("cpu"))


def test_a_chunk_a_decode_and_a_whole_prompt_stand_in_one_batch() -> None:
    chunk = a_sequence(1, [10, 11, 12, 13, 14, 15, 16, 17], [5, 3], prompt=8)
    decode = a_sequence(2, [20, 21, 22, 23, 24], [7, 2], prompt=3)
    prompt = a_sequence(3, [30, 31], [9])

    batch = a_builder().build(
        SchedulerOutput(scheduled=(scheduled(chunk, 2, 7), scheduled(decode, 4, 5), scheduled(prompt, 0, 2)))
    )

    assert batch.token_ids.tolist() == [12, 13, 14, 15, 16, 24, 30, 31]
    assert batch.positions.tolist() == [2, 3, 4, 5, 6, 4, 0, 1]
    assert batch.attention.query_start_loc.tolist() == [0, 5, 6, 8]
    assert batch.attention.seq_lens.tolist() == [7, 5, 2]
    assert batch.attention.block_tables.tolist() == [[5, 3], [7, 2], [9, 0]]
    assert batch.attention.slot_mapping.tolist() == [22, 23, 12, 13, 14, 8, 36, 37]
    attention = batch.attention
    assert (attention.min_query_len, attention.max_query_len, attention.max_seq_len) == (1, 5, 7)
    assert batch.logit_rows is not None
    assert batch.logit_rows.tolist() == [5, 7]
    assert [item.sequence for item in batch.samples] == [decode, prompt]


def test_decodes_alone_need_no_choice_of_rows() -> None:
    items = [scheduled(a_sequence(n, list(range(n, n + 6)), [2 * n, 2 * n + 1]), 5, 6) for n in (1, 2, 3)]

    batch = a_builder().build(SchedulerOutput(scheduled=tuple(items)))

    assert batch.logit_rows is None
    assert batch.token_ids.tolist() == [6, 7, 8]
    assert batch.attention.slot_mapping.tolist() == [13, 21, 29]


def test_buffers_of_an_earlier_larger_step_leave_no_trace() -> None:
    builder = a_builder()
    large = [a_sequence(number, list(range(40)), list(range(1, 11))) for number in (1, 2)]
    builder.build(SchedulerOutput(scheduled=tuple(scheduled(sequence, 0, 40) for sequence in large)))

    batch = builder.build(
        SchedulerOutput(
            scheduled=(
                scheduled(a_sequence(2, [1, 2, 3], [4]), 0, 3),
                scheduled(a_sequence(3, [4, 5, 6, 7, 8], [6, 7]), 0, 5),
            )
        )
    )

    assert batch.attention.block_tables.tolist() == [[4, 0], [6, 7]]
    assert batch.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_dtypes_and_contiguity_are_those_of_the_kernels() -> None:
    batch = a_builder().build(SchedulerOutput(scheduled=(scheduled(a_sequence(1, [1, 2, 3], [4]), 0, 3),)))

    attention = batch.attention
    assert {t.dtype for t in (attention.query_start_loc, attention.seq_lens, attention.block_tables)} == {torch.int32}
    assert {t.dtype for t in (batch.token_ids, batch.positions, attention.slot_mapping)} == {torch.int64}
    assert attention.block_tables.is_contiguous()


@pytest.mark.parametrize(
    ("start", "end", "reported", "positions", "rows"),
    [
        (0, 6, 0, [1, 2, 3, 4, 5], [0, 1, 2, 3, 4]),
        (0, 3, 0, [1, 2, 3], [0, 1, 2]),
        (3, 6, 0, [4, 5], [0, 1]),
        (0, 6, 4, [4, 5], [3, 4]),
        (5, 6, 0, [], []),
    ],
)
def test_prompt_logprobs_are_taken_from_the_row_before(
    start: int, end: int, reported: int, positions: list[int], rows: list[int]
) -> None:
    sequence = a_sequence(1, [10, 11, 12, 13, 14, 15, 16], [1, 2], prompt=6, prompt_logprobs=1)
    sequence.num_reported_prompt_logprobs = reported

    batch = a_builder().build(SchedulerOutput(scheduled=(scheduled(sequence, start, end),)))

    assert [target.position for target in batch.prompt_targets] == positions
    assert batch.logit_rows is not None
    assert batch.logit_rows.tolist() == rows


def test_a_token_outside_the_vocabulary_fails_its_sequence_alone() -> None:
    bad, good = a_sequence(1, [5, 100, -1], [1]), a_sequence(2, [99, 0], [2])

    batch = a_builder().build(SchedulerOutput(scheduled=(scheduled(bad, 0, 3), scheduled(good, 0, 2))))

    assert list(batch.invalid) == [1]
    assert "vocabulary of 100" in batch.invalid[SequenceId(1)]
    assert batch.token_ids.tolist() == [5, 0, 0, 99, 0]
    assert bad.token_ids == [5, 100, -1]
