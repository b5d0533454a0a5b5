"""What is known already is not computed again; blocks of 4 tokens, 64 tokens a step unless a test says else."""

from __future__ import annotations

import pytest

from octavo_server.engine.request import SamplingParams
from octavo_server.engine.sequence import SequenceStatus
from octavo_server.engine.waiting_queue import SchedulingPolicy
from octavo_testing.sequences import LONG, a_scheduler, a_sequence, a_step, added, ranges, some_tokens


class TestPrefixHits:
    def test_a_hit_is_not_computed_again_and_is_counted(self) -> None:
        scheduler = a_scheduler()
        (first,) = added(scheduler, a_sequence(10, params=SamplingParams(max_tokens=1)))
        a_step(scheduler)

        (second,) = added(scheduler, a_sequence([*first.request.prompt_token_ids, 1, 2]))
        output, _ = a_step(scheduler)

        assert ranges(output) == {second.sequence_id: (8, 12)}
        assert second.num_cached_tokens == 8
        assert (scheduler.stats().prefix_queries, scheduler.stats().prefix_hits) == (22, 8)

    def test_outputs_are_hit_too_as_the_next_turn_of_a_chat_needs(self) -> None:
        scheduler = a_scheduler()
        (first,) = added(scheduler, a_sequence(4, params=SamplingParams(max_tokens=5)))
        while scheduler.has_work:
            a_step(scheduler)

        (second,) = added(scheduler, a_sequence([*first.token_ids, 1]))
        a_step(scheduler)

        assert second.num_cached_tokens == 8

    def test_the_last_token_sampled_has_no_kv_and_is_not_hit(self) -> None:
        scheduler = a_scheduler()
        (first,) = added(scheduler, a_sequence(4, params=SamplingParams(max_tokens=4)))
        while scheduler.has_work:
            a_step(scheduler)

        (second,) = added(scheduler, a_sequence([*first.token_ids, 1]))
        a_step(scheduler)

        assert first.num_tokens == 8
        assert second.num_cached_tokens == 4

    def test_a_beginning_that_is_being_computed_is_waited_for_and_computed_once(self) -> None:
        """Three outputs of one prompt of 18 tokens, 8 a step: 18 + 2 + 2 tokens, not 54."""
        scheduler = a_scheduler(budget=16, share=8)
        prompt = some_tokens(18)
        first, second, third = added(scheduler, *(a_sequence(prompt, params=LONG) for _ in range(3)))

        steps = [ranges(a_step(scheduler)[0]) for _ in range(3)]

        assert steps == [
            {first.sequence_id: (0, 8)},
            {first.sequence_id: (8, 16)},
            {first.sequence_id: (16, 18), second.sequence_id: (16, 18), third.sequence_id: (16, 18)},
        ]
        assert second.block_ids[:4] == third.block_ids[:4] == first.block_ids[:4]

    def test_it_is_not_waited_for_once_its_maker_is_gone(self) -> None:
        scheduler = a_scheduler(budget=16, share=8)
        prompt = some_tokens(18)
        first, second = added(scheduler, *(a_sequence(prompt, params=LONG) for _ in range(2)))
        a_step(scheduler)

        scheduler.abort(first.sequence_id)

        assert ranges(a_step(scheduler)[0]) == {second.sequence_id: (8, 18)}

    @pytest.mark.parametrize("asks", [SamplingParams(), SamplingParams(prompt_logprobs=0)])
    def test_what_shares_nothing_or_reads_no_hits_does_not_wait(self, asks: SamplingParams) -> None:
        scheduler = a_scheduler(budget=16, share=8)
        (first,) = added(scheduler, a_sequence(18))
        prompt = some_tokens(18) if asks.prompt_logprobs is None else first.request.prompt_token_ids
        (second,) = added(scheduler, a_sequence(prompt, params=asks))

        assert list(ranges(a_step(scheduler)[0])) == [first.sequence_id, second.sequence_id]

    def test_what_reads_no_hits_does_not_wait_when_it_resumes_either(self) -> None:
        """Its blocks have names by then, as others may hit them."""
        scheduler = a_scheduler(budget=16, share=8)
        asks = a_sequence(18, params=SamplingParams(prompt_logprobs=0))
        maker = a_sequence(asks.request.prompt_token_ids)
        scheduler.kv.match_prefix(maker)
        asks.block_hashes = list(maker.block_hashes)
        added(scheduler, maker, asks)

        assert list(ranges(a_step(scheduler)[0])) == [maker.sequence_id, asks.sequence_id]

    @pytest.mark.parametrize(
        ("caching", "params"), [(False, SamplingParams()), (True, SamplingParams(prompt_logprobs=1))]
    )
    def test_what_reads_no_hits_counts_no_query(self, caching: bool, params: SamplingParams) -> None:
        scheduler = a_scheduler(prefix_caching=caching)
        for _ in range(2):
            added(scheduler, a_sequence([1, 2, 3, 4, 5, 6], params=params))
            while scheduler.has_work:
                a_step(scheduler)

        assert (scheduler.stats().prefix_queries, scheduler.stats().prefix_hits) == (0, 0)

    def test_cache_aware_admits_the_one_that_hits_first(self) -> None:
        scheduler = a_scheduler(policy=SchedulingPolicy.CACHE_AWARE, seqs=1)
        (first,) = added(scheduler, a_sequence(8, params=SamplingParams(max_tokens=1)))
        a_step(scheduler)
        cold, hot = added(scheduler, a_sequence(9), a_sequence([*first.request.prompt_token_ids, 1]))

        output, _ = a_step(scheduler)

        assert list(ranges(output)) == [hot.sequence_id]
        assert cold.status is SequenceStatus.WAITING
