"""What a device makes of the slots that it keeps is what the host makes of lists."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_kernels.batches import NULL_BLOCK, PAD_SLOT
from octavo_server.engine.batch import BatchBuilder, ForwardBatch
from octavo_server.engine.outputs import BlockId, ScheduledSequence, SchedulerOutput, SequenceId
from octavo_server.engine.request import Request, SamplingParams
from octavo_server.engine.request_slots import RequestSlots
from octavo_server.engine.resident_batch import ResidentBatchBuilder, prepare
from octavo_server.engine.sampler import sampling_batch
from octavo_server.engine.sequence import Sequence

BLOCK_SIZE, VOCABULARY, MOST_TOKENS = 4, 50, 64
CPU = torch.device("cpu")


def some_slots(num_slots: int = 6) -> RequestSlots:
    return RequestSlots(num_slots=num_slots, max_blocks=MOST_TOKENS // BLOCK_SIZE, block_size=BLOCK_SIZE, device=CPU)


def a_sequence(number: int, num_tokens: int, **params: Any) -> Sequence:
    request = Request(
        request_id=str(number),
        prompt_token_ids=tuple(token % VOCABULARY for token in range(number, number + num_tokens)),
        params=SamplingParams(**params),
        arrival_s=0.0,
    )
    return Sequence(sequence_id=SequenceId(number), request=request, seed=2**63 + number)


def an_item(sequence: Sequence, start: int, num_tokens: int, **kind: bool) -> ScheduledSequence:
    samples = start + num_tokens >= sequence.num_tokens and not kind.get("pools")
    return ScheduledSequence(sequence=sequence, start=start, num_tokens=num_tokens, samples=samples, **kind)


def assert_equal(expected: ForwardBatch, actual: ForwardBatch) -> None:
    assert (expected.samples, expected.pooled, expected.prompt_targets, expected.invalid) == (
        actual.samples,
        actual.pooled,
        actual.prompt_targets,
        actual.invalid,
    )
    pairs = [(getattr(expected, name), getattr(actual, name)) for name in ("token_ids", "positions", "logit_rows")]
    for field in fields(expected.attention):
        pairs.append((getattr(expected.attention, field.name), getattr(actual.attention, field.name)))
    if expected.samples:
        sampling = sampling_batch(expected.samples, CPU)
        pairs += [(getattr(sampling, field.name), getattr(actual.sampling, field.name)) for field in fields(sampling)]
    for one, other in pairs:
        if isinstance(one, torch.Tensor) and one.dim() == 2:
            # filled up with null blocks
            assert torch.nn.functional.pad(one, (0, other.shape[1] - one.shape[1])).tolist() == other.tolist()
        elif isinstance(one, torch.Tensor):
            assert (one.dtype, one.tolist()) == (other.dtype, other.tolist())
        else:
            assert one == other


@st.composite
def lives(draw: st.DrawFn) -> list[list[tuple[int, int, str]]]:
    """Steps: of each sequence its number, how many tokens it computes, and what happens to it before."""
    happens = st.sampled_from(["nothing"] * 6 + ["preempted", "left out", "pools"])
    item = st.tuples(st.integers(1, 6), st.integers(1, 7), happens)
    return draw(st.lists(st.lists(item, min_size=1, max_size=6, unique_by=lambda i: i[0]), min_size=1, max_size=10))


@given(lives())
@settings(max_examples=60, deadline=None)
def test_slots_give_the_tensors_that_lists_give(steps: list[list[tuple[int, int, str]]]) -> None:
    """Whatever comes, goes, is preempted and grows: tensor for tensor, also of sampling."""
    lists, resident = (
        BatchBuilder(BLOCK_SIZE, VOCABULARY, CPU),
        ResidentBatchBuilder(some_slots(), VOCABULARY, CPU),
    )
    sequences: dict[int, Sequence] = {}
    next_block = 1
    for step in steps:
        items = []
        for number, num_tokens, happens in step:
            if number not in sequences or sequences[number].num_tokens < sequences[number].num_computed_tokens + 8:
                params = {
                    "temperature": number / 4,
                    "top_k": number,
                    "top_p": 0.5,
                    "prompt_logprobs": number % 2 or None,
                }
                sequences[number] = a_sequence(number + 10 * next_block, 30, **params)
            sequence = sequences[number]
            if happens == "left out":
                continue
            if happens == "preempted":
                sequence.block_ids, sequence.num_computed_tokens = [], 0
                sequence.num_preemptions += 1
            start = sequence.num_computed_tokens
            while len(sequence.block_ids) * BLOCK_SIZE < start + num_tokens:
                sequence.block_ids.append(BlockId(next_block))
                next_block += 1
            items.append(an_item(sequence, start, num_tokens, **({"pools": True} if happens == "pools" else {})))
            sequence.num_computed_tokens += num_tokens
        if items:
            output = SchedulerOutput(scheduled=tuple(items))
            assert_equal(lists.build(output), resident.build(output))


def test_a_token_that_is_still_on_the_device_is_taken_from_its_slot() -> None:
    resident = ResidentBatchBuilder(some_slots(), VOCABULARY, CPU)
    first, second = a_sequence(1, 3), a_sequence(2, 5)
    first.block_ids, second.block_ids = [BlockId(1)], [BlockId(2), BlockId(3)]
    batch = resident.build(SchedulerOutput(scheduled=(an_item(first, 0, 3), an_item(second, 0, 5))))
    assert batch.sampled_slots is not None
    resident.slots.keep_tokens(batch.sampled_slots, torch.tensor([31, 32]))

    batch = resident.build(SchedulerOutput(scheduled=(an_item(second, 5, 1), an_item(first, 3, 1))))

    assert batch.token_ids.tolist() == [32, 31]
    assert batch.invalid == {}


def test_a_token_that_the_model_does_not_have_is_told_of_its_sequence() -> None:
    resident = ResidentBatchBuilder(some_slots(), 4, CPU)
    sequence = a_sequence(2, 3)
    sequence.block_ids = [BlockId(1)]

    batch = resident.build(SchedulerOutput(scheduled=(an_item(sequence, 0, 3),)))

    assert batch.token_ids.tolist() == [2, 3, 0]
    assert "4" in batch.invalid[sequence.sequence_id]


def test_only_what_is_new_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = some_slots()
    sequence = a_sequence(1, 20)
    sequence.block_ids = [BlockId(number) for number in range(1, 4)]
    slots.place([an_item(sequence, 0, 9)])
    copied: list[list[int]] = []
    monkeypatch.setattr(slots, "_copy_blocks", lambda _places, blocks: copied.append(list(blocks)))
    slots.place([an_item(sequence, 9, 1)])
    sequence.block_ids.append(BlockId(9))

    slots.place([an_item(sequence, 10, 3)])

    assert copied == [[], [9]]


def test_slots_come_back() -> None:
    slots = some_slots(num_slots=2)
    for number in range(1, 9):
        sequence = a_sequence(number, 3)
        sequence.block_ids = [BlockId(number)]
        assert slots.place([an_item(sequence, 0, 3)]) != [slots.padding]
    slots.forget()
    assert len(slots.place([an_item(a_sequence(number, 3), 0, 3) for number in (20, 21)])) == 2


def test_what_fills_a_step_up_is_written_nowhere() -> None:
    slots = some_slots()
    padding = torch.tensor([slots.padding] * 2)

    _, _, attention = prepare(
        slots,
        padding,
        torch.zeros(2, dtype=torch.int64),
        None,
        torch.zeros(2, dtype=torch.int64),
        query_lens=(1, 1),
        max_seq_len=8,
    )

    assert attention.slot_mapping.tolist() == [PAD_SLOT] * 2
    assert attention.block_tables.tolist() == [[NULL_BLOCK] * 16] * 2
