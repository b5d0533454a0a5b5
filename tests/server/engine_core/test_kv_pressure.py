"""octavo_kv_pressure_ratio, number by number: blocks of 4 tokens, outputs expected to be 64 tokens until ten are known."""

from __future__ import annotations

import pytest

from octavo_server.engine.kv_pressure import RECOUNTS_PER_READING, OutputLengths
from octavo_server.engine.request import FinishReason, SamplingParams
from octavo_server.engine.scheduler import Scheduler
from octavo_server.engine.waiting_queue import SchedulingPolicy
from octavo_testing.sequences import a_scheduler, a_sequence, a_step

LONG = SamplingParams(max_tokens=900)


def finish_outputs(scheduler: Scheduler, count: int, tokens: int) -> None:
    """Runs `count` one-token prompts to outputs of `tokens` tokens, one after another."""
    for _ in range(count):
        scheduler.add(a_sequence(1, params=SamplingParams(max_tokens=tokens)))
        while scheduler.has_work:
            a_step(scheduler)
    scheduler.pop_finished()


def test_an_idle_engine_has_no_pressure_even_with_a_warm_cache() -> None:
    scheduler = a_scheduler()
    finish_outputs(scheduler, 1, tokens=20)

    stats = scheduler.stats()

    assert (stats.pressure, stats.kv_usage, stats.running, stats.waiting, stats.waste) == (0, 0, 0, 0, 0)
    assert len(scheduler.kv._cache) == 5


def test_output_lengths_are_64_until_ten_are_known_then_their_mean_rounded_up() -> None:
    lengths = OutputLengths()
    for _ in range(9):
        lengths.add(4)
    assert lengths.expected == 64

    lengths.add(5)

    assert lengths.expected == 5


def test_a_waiting_request_needs_its_prompt_and_the_expected_output() -> None:
    """(10 + 64) tokens are 19 blocks, of 20; not capped at 1 when a second one comes."""
    scheduler = a_scheduler(blocks=20, seqs=100)

    scheduler.add(a_sequence(10, params=LONG))
    assert scheduler.stats().pressure == 19 / 20

    scheduler.add(a_sequence(10, params=LONG))
    assert scheduler.stats().pressure == 38 / 20


def test_the_expected_output_is_at_most_max_tokens() -> None:
    scheduler = a_scheduler(blocks=20, seqs=100)

    scheduler.add(a_sequence(10, params=SamplingParams(max_tokens=3)))

    assert scheduler.stats().pressure == 4 / 20


def test_the_expected_output_is_the_mean_of_finished_ones_for_those_too_that_already_wait() -> None:
    scheduler = a_scheduler(blocks=200, seqs=1)
    finish_outputs(scheduler, 9, tokens=8)
    for _ in range(2):
        scheduler.add(a_sequence(1, params=SamplingParams(max_tokens=8)))
    scheduler.add(a_sequence(4, params=LONG))
    a_step(scheduler)
    assert scheduler.stats().pressure == 3
    assert scheduler._demand.blocks() == 3 + 17

    while scheduler.stats().waiting == 2:
        a_step(scheduler)

    assert scheduler._demand.blocks() == 3


def test_aborted_and_failed_outputs_do_not_count_as_finished() -> None:
    scheduler = a_scheduler()
    for reason in [FinishReason.ABORT] * 10 + [FinishReason.ERROR] * 10:
        scheduler.add(sequence := a_sequence(1))
        a_step(scheduler)
        scheduler.finish(sequence.sequence_id, reason)

    assert scheduler._lengths.expected == 64


def test_a_request_for_no_output_says_nothing_of_the_next_ones_length() -> None:
    """Embeddings beside a chat would else make every waiting answer look short."""
    scheduler = a_scheduler(blocks=20, seqs=100)
    for _ in range(10):
        scheduler.add(a_sequence(1, params=SamplingParams(max_tokens=0)))
    a_step(scheduler)

    scheduler.add(a_sequence(10, params=LONG))

    assert scheduler.stats().pressure == 19 / 20


def test_a_running_request_counts_what_it_holds() -> None:
    """5 tokens and the slot for the sixth: 2 blocks of 10."""
    scheduler = a_scheduler(blocks=10, seqs=100)
    scheduler.add(a_sequence(5, params=LONG))

    a_step(scheduler)

    assert scheduler.stats().pressure == 2 / 10
    assert scheduler.stats().kv_usage == 2 / 10


def test_prefix_hits_of_a_waiting_request_are_deducted() -> None:
    scheduler = a_scheduler(blocks=20, seqs=100)
    first = a_sequence(9, params=SamplingParams(max_tokens=1))
    scheduler.add(first)
    a_step(scheduler)

    scheduler.add(a_sequence([*first.request.prompt_token_ids, 1], params=SamplingParams(max_tokens=2)))

    assert scheduler.stats().pressure == (3 - 2) / 20


def test_hits_that_come_up_while_waiting_are_seen_at_the_next_readings_of_a_bounded_number() -> None:
    """Each of 40 needs 3 blocks until 2 of them are a hit; a reading looks at 32, the longest not looked at first."""
    scheduler = a_scheduler(blocks=200, seqs=1)
    first = a_sequence(9, params=SamplingParams(max_tokens=200))
    scheduler.add(first)
    for _ in range(40):
        scheduler.add(a_sequence([*first.request.prompt_token_ids, 1], params=SamplingParams(max_tokens=2)))

    a_step(scheduler)

    assert RECOUNTS_PER_READING == 32
    assert scheduler._demand.blocks() == 32 * 1 + 8 * 3
    assert scheduler._demand.blocks() == 40 * 1


def test_sequences_over_max_num_seqs_is_pressure_too() -> None:
    scheduler = a_scheduler(blocks=1000, seqs=2)
    for _ in range(5):
        scheduler.add(a_sequence(1, params=SamplingParams(max_tokens=3)))
    a_step(scheduler)

    assert scheduler.stats().pressure == 5 / 2


def test_a_preempted_request_needs_at_least_the_output_that_it_has() -> None:
    """Two sequences share 5 blocks until the newer one goes back with 5 tokens of output where 3 were expected."""
    scheduler = a_scheduler(blocks=5, seqs=100, prefix_caching=False)
    for _ in range(10):
        scheduler._lengths.add(3)
    for _ in range(2):
        scheduler.add(a_sequence(4, params=SamplingParams(max_tokens=12)))
    while not (preempted := a_step(scheduler)[0].preempted):
        pass

    (sequence,) = scheduler._waiting
    assert preempted == (sequence.sequence_id,)
    assert sequence.num_output_tokens == 5
    assert scheduler._demand.blocks() == 3


@pytest.mark.parametrize("policy", list(SchedulingPolicy))
def test_an_aborted_waiting_request_takes_its_demand_along(policy: SchedulingPolicy) -> None:
    scheduler = a_scheduler(policy=policy)
    scheduler.add(sequence := a_sequence(10))

    assert scheduler.abort(sequence.sequence_id)

    assert scheduler.stats().pressure == 0
