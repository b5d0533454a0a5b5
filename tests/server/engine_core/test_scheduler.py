"""What a step computes, and what happens to sequences; blocks of 4 tokens, 64 tokens a step unless a test says else."""

from __future__ import annotations

import pytest

from octavo_server.engine.outputs import PromptLogprob, RunnerOutput, SampledToken, SequenceId, TokenLogprob
from octavo_server.engine.request import FinishReason, SamplingParams
from octavo_server.engine.scheduler import Scheduler, _StepPlan
from octavo_server.engine.sequence import Sequence, SequenceStatus
from octavo_server.engine.waiting_queue import SchedulingPolicy
from octavo_server.errors import InvalidRequestError
from octavo_testing.sequences import a_scheduler, a_sequence, a_step, ranges, some_tokens

LONG = SamplingParams(max_tokens=900)


def added(scheduler: Scheduler, *sequences: Sequence) -> list[Sequence]:
    for sequence in sequences:
        scheduler.add(sequence)
    return list(sequences)


class TestOneSequence:
    def test_a_prompt_is_computed_whole_and_then_one_token_a_step(self) -> None:
        scheduler = a_scheduler()
        (sequence,) = added(scheduler, a_sequence(5))

        first, results = a_step(scheduler, token=77)
        second, _ = a_step(scheduler, token=78)

        assert ranges(first) == {sequence.sequence_id: (0, 5)}
        assert [token.token_id for token in results[0].tokens] == [77]
        assert ranges(second) == {sequence.sequence_id: (5, 6)}
        assert sequence.output_token_ids == [77, 78]

    def test_a_prompt_over_the_budget_is_computed_in_chunks_and_samples_after_the_last(self) -> None:
        scheduler = a_scheduler(budget=8)
        (sequence,) = added(scheduler, a_sequence(20))

        steps = [a_step(scheduler) for _ in range(3)]

        assert [ranges(output)[sequence.sequence_id] for output, _ in steps] == [(0, 8), (8, 16), (16, 20)]
        assert [output.scheduled[0].samples for output, _ in steps] == [False, False, True]
        assert [len(results) for _, results in steps] == [0, 0, 1]
        assert steps[0][0].num_tokens == 8

    def test_stamps_are_of_the_first_step_the_first_token_and_the_last(self) -> None:
        scheduler = a_scheduler(budget=4)
        (sequence,) = added(scheduler, a_sequence(8))

        for now in (1.0, 2.0, 3.0):
            a_step(scheduler, now=now)

        assert (sequence.first_scheduled_s, sequence.first_token_s, sequence.last_token_s) == (1.0, 2.0, 3.0)

    def test_a_step_that_raised_may_be_scheduled_again(self) -> None:
        """Nothing advances before `update`: the same ranges, the same blocks, nothing counted twice."""
        scheduler = a_scheduler()
        (sequence,) = added(scheduler, a_sequence(5))

        lost = scheduler.schedule(0.0)
        blocks = list(sequence.block_ids)
        again = scheduler.schedule(0.0)

        assert ranges(again) == ranges(lost)
        assert sequence.block_ids == blocks
        assert scheduler.stats().prefix_queries == 5

    def test_an_idle_scheduler_has_no_work_and_an_empty_step(self) -> None:
        scheduler = a_scheduler()
        assert not scheduler.has_work
        assert scheduler.schedule(0.0).scheduled == ()

        scheduler.add(a_sequence())

        assert scheduler.has_work


class TestStopRules:
    def run(self, scheduler: Scheduler, params: SamplingParams, tokens: list[int]) -> Sequence:
        """Feeds the tokens one a step until the sequence ends."""
        (sequence,) = added(scheduler, a_sequence(5, params=params))
        for token in tokens:
            assert not sequence.is_finished, "ended too early"
            a_step(scheduler, token=token)
        return sequence

    @pytest.mark.parametrize(
        ("params", "tokens", "reason", "stop_reason"),
        [
            pytest.param(SamplingParams(), [7, 2], "stop", None, id="eos"),
            pytest.param(SamplingParams(ignore_eos=True, max_tokens=3), [2, 2, 2], "length", None, id="ignore_eos"),
            pytest.param(SamplingParams(stop_token_ids=(9,)), [7, 9], "stop", 9, id="stop token"),
            pytest.param(
                SamplingParams(stop_token_ids=(2,), ignore_eos=True), [7, 2], "stop", 2, id="eos as stop token"
            ),
            pytest.param(SamplingParams(max_tokens=2), [7, 7], "length", None, id="max_tokens"),
            pytest.param(SamplingParams(max_tokens=2), [7, 2], "stop", None, id="eos as the last token allowed"),
            pytest.param(SamplingParams(min_tokens=3), [2, 2, 2], "stop", None, id="min_tokens holds eos back"),
            pytest.param(
                SamplingParams(min_tokens=2, stop_token_ids=(9,)), [9, 9], "stop", 9, id="min_tokens holds stops back"
            ),
        ],
    )
    def test_an_output_ends_by_its_rule(
        self, params: SamplingParams, tokens: list[int], reason: str, stop_reason: int | None
    ) -> None:
        sequence = self.run(a_scheduler(), params, tokens)

        assert (sequence.finish_reason, sequence.stop_reason) == (reason, stop_reason)
        assert sequence.output_token_ids == tokens

    def test_without_max_tokens_the_context_is_filled(self) -> None:
        sequence = self.run(a_scheduler(context=8), SamplingParams(max_tokens=None), [7, 7, 7])

        assert sequence.finish_reason == "length"
        assert sequence.num_tokens == 8

    def test_min_tokens_does_not_reach_beyond_the_context(self) -> None:
        sequence = self.run(a_scheduler(context=7), SamplingParams(max_tokens=None, min_tokens=50), [7, 7])

        assert sequence.finish_reason == "length"

    def test_no_more_tokens_than_the_whole_cache_holds(self) -> None:
        sequence = self.run(a_scheduler(blocks=2, context=1000), LONG, [7, 7, 7])

        assert sequence.finish_reason == "length"

    def test_max_tokens_0_computes_the_prompt_and_samples_nothing(self) -> None:
        """What evaluation harnesses ask for, with echo and log-probabilities."""
        scheduler = a_scheduler(budget=4)
        (sequence,) = added(scheduler, a_sequence(6, params=SamplingParams(max_tokens=0)))

        steps = [a_step(scheduler) for _ in range(2)]

        assert [output.scheduled[0].samples for output, _ in steps] == [False, False]
        assert [result.finish_reason for result in steps[1][1]] == ["length"]
        assert sequence.output_token_ids == []


class TestEnds:
    def test_each_end_is_told_once_and_frees_everything(self) -> None:
        scheduler = a_scheduler()
        stops, aborted, waits = added(scheduler, *(a_sequence(5) for _ in range(3)))
        scheduler.abort(waits.sequence_id)
        a_step(scheduler, token=7)
        scheduler.finish(aborted.sequence_id, FinishReason.STOP, stop_reason="END")

        _, results = a_step(scheduler, token=2)

        assert [(result.sequence, result.finish_reason) for result in results] == [(stops, "stop")]
        assert scheduler.pop_finished() == [waits, aborted, stops]
        assert scheduler.pop_finished() == []
        assert (aborted.finish_reason, aborted.stop_reason) == ("stop", "END")
        assert not scheduler.has_work
        assert scheduler.kv.num_used_blocks == 0

    def test_ending_what_has_ended_changes_nothing(self) -> None:
        scheduler = a_scheduler()
        (sequence,) = added(scheduler, a_sequence(5))
        a_step(scheduler, token=2)

        assert not scheduler.abort(sequence.sequence_id)
        assert not scheduler.abort(SequenceId(10**9))
        assert sequence.finish_reason is FinishReason.STOP

    def test_a_result_for_what_was_aborted_during_the_step_is_dropped(self) -> None:
        scheduler = a_scheduler()
        gone, stays = added(scheduler, a_sequence(5), a_sequence(5))
        output = scheduler.schedule(0.0)
        scheduler.abort(gone.sequence_id)

        sampled = {item.sequence.sequence_id: SampledToken(token_id=7) for item in output.scheduled}
        results = scheduler.update(output, RunnerOutput(sampled=sampled), 0.0)

        assert [result.sequence for result in results] == [stays]
        assert gone.output_token_ids == []
        scheduler.check_integrity()

    def test_a_failed_row_ends_alone_and_its_blocks_serve_nobody(self) -> None:
        scheduler = a_scheduler()
        bad, good = added(scheduler, a_sequence(8), a_sequence(4))
        a_step(scheduler)

        _, results = a_step(scheduler, failed={bad.sequence_id: "a logit is not finite"})

        assert {result.sequence: result.finish_reason for result in results} == {bad: "error", good: None}
        assert bad.error == "a logit is not finite"
        assert scheduler.kv.match_prefix(a_sequence([*bad.token_ids, 1])) == []

    def test_blocks_shared_with_a_failed_row_stay_unfindable_while_their_holder_goes_on(self) -> None:
        scheduler = a_scheduler()
        (bad,) = added(scheduler, a_sequence(8, params=LONG))
        a_step(scheduler)
        (good,) = added(scheduler, a_sequence([*bad.token_ids[:8], 1, 2], params=LONG))

        a_step(scheduler, failed={bad.sequence_id: "a logit is not finite"})
        for _ in range(4):
            a_step(scheduler)

        assert good.num_cached_tokens == 8
        assert good.num_published_blocks == 3
        assert scheduler.kv.match_prefix(a_sequence([*good.token_ids, 1])) == []

    def test_adding_a_sequence_twice_is_our_own_mistake(self) -> None:
        scheduler = a_scheduler()
        (sequence,) = added(scheduler, a_sequence())

        with pytest.raises(AssertionError, match="added twice"):
            scheduler.add(sequence)


class TestSharingAStep:
    def test_streams_and_prompts_share_one_budget(self) -> None:
        scheduler = a_scheduler(budget=16, share=16)
        (stream,) = added(scheduler, a_sequence(3, params=LONG))
        a_step(scheduler)
        (prompt,) = added(scheduler, a_sequence(40))

        output, _ = a_step(scheduler)

        assert ranges(output) == {stream.sequence_id: (3, 4), prompt.sequence_id: (0, 15)}
        assert output.num_tokens == 16

    def test_a_stream_never_waits_for_prompts_that_were_admitted_before_it(self) -> None:
        """Both long prompts would take the whole budget; the stream is the newest of the three."""
        scheduler = a_scheduler(budget=16, share=8)
        added(scheduler, a_sequence(100), a_sequence(100))
        a_step(scheduler)
        (stream,) = added(scheduler, a_sequence(1, params=LONG))
        while not stream.num_output_tokens:
            a_step(scheduler)

        lengths = [stream.num_output_tokens]
        while any(item.num_tokens > 1 for item in a_step(scheduler)[0].scheduled):
            lengths.append(stream.num_output_tokens)

        assert lengths == list(range(1, len(lengths) + 1))

    def test_a_long_prompt_takes_its_share_of_a_step_so_that_a_short_one_gets_in(self) -> None:
        scheduler = a_scheduler(budget=16, share=4)
        long, short = added(scheduler, a_sequence(100), a_sequence(3))

        output, _ = a_step(scheduler)

        assert ranges(output) == {long.sequence_id: (0, 4), short.sequence_id: (0, 3)}

    def test_a_long_prompt_that_is_alone_takes_the_whole_step(self) -> None:
        scheduler = a_scheduler(budget=16, share=4)
        (sequence,) = added(scheduler, a_sequence(100))

        assert ranges(a_step(scheduler)[0]) == {sequence.sequence_id: (0, 16)}
        added(scheduler, a_sequence(3))
        assert ranges(a_step(scheduler)[0])[sequence.sequence_id] == (16, 20)

    def test_the_share_is_a_quarter_of_the_budget_unless_set(self) -> None:
        scheduler = a_scheduler(budget=64)
        first, second = added(scheduler, a_sequence(50), a_sequence(50))

        assert ranges(a_step(scheduler)[0]) == {first.sequence_id: (0, 16), second.sequence_id: (0, 16)}

    def test_no_more_run_than_max_num_seqs(self) -> None:
        scheduler = a_scheduler(seqs=2)
        added(scheduler, *(a_sequence(3) for _ in range(3)))

        a_step(scheduler)

        assert (scheduler.stats().running, scheduler.stats().waiting) == (2, 1)

    def test_no_more_run_than_a_step_has_tokens(self) -> None:
        """Else a stream would be left out of a step."""
        scheduler = a_scheduler(budget=2, seqs=8)
        added(scheduler, *(a_sequence(1, params=LONG) for _ in range(3)))

        for _ in range(4):
            output, _ = a_step(scheduler)

        assert len(output.scheduled) == 2
        assert scheduler.stats().waiting == 1


class TestAdmission:
    def test_a_prompt_enters_only_if_all_of_it_fits(self) -> None:
        """The first chunk would: 6 blocks, 3 held, 4 needed."""
        scheduler = a_scheduler(blocks=6, budget=12)
        added(scheduler, a_sequence(11, params=LONG))
        a_step(scheduler)
        (waits,) = added(scheduler, a_sequence(13))

        output, _ = a_step(scheduler)

        assert waits.status is SequenceStatus.WAITING
        assert len(output.scheduled) == 1

    def test_a_prompt_enters_only_beside_what_running_prompts_are_promised(self) -> None:
        """8 blocks: the first prompt holds 1 of the 5 that it will need, so the second's 4 do not fit."""
        scheduler = a_scheduler(blocks=8, budget=16, share=4)
        first, second = added(scheduler, a_sequence(20), a_sequence(13))

        output, _ = a_step(scheduler)

        assert ranges(output) == {first.sequence_id: (0, 4)}
        assert second.status is SequenceStatus.WAITING
        for _ in range(10):
            assert a_step(scheduler)[0].preempted == ()

    def test_the_promise_holds_between_prompts_admitted_in_one_step(self) -> None:
        scheduler = a_scheduler(blocks=8, budget=16, share=4)
        added(scheduler, a_sequence(12), a_sequence(12), a_sequence(12))

        a_step(scheduler)

        assert (scheduler.stats().running, scheduler.stats().waiting) == (2, 1)

    def test_admission_leaves_the_watermark_free(self) -> None:
        """10 blocks, a tenth of them kept back: 4 + 4 leave 2, 4 + 6 leave none."""
        scheduler = a_scheduler(blocks=10, watermark=0.1)
        added(scheduler, a_sequence(16, params=LONG), a_sequence(24))
        a_step(scheduler)
        assert scheduler.stats().waiting == 1

        added(scheduler, a_sequence(16))
        a_step(scheduler)

        assert scheduler.stats().waiting == 2

    def test_the_watermark_does_not_keep_out_a_prompt_that_needs_all_when_nothing_runs(self) -> None:
        scheduler = a_scheduler(blocks=10, watermark=0.5)
        (sequence,) = added(scheduler, a_sequence(39))

        assert ranges(a_step(scheduler)[0]) == {sequence.sequence_id: (0, 39)}

    def test_the_first_that_does_not_fit_is_not_passed_by_a_smaller_one(self) -> None:
        """Else a long prompt starves under a stream of short ones."""
        scheduler = a_scheduler(blocks=8)
        added(scheduler, a_sequence(15, params=LONG), a_sequence(20), a_sequence(1))

        a_step(scheduler)

        assert (scheduler.stats().running, scheduler.stats().waiting) == (1, 2)

    @pytest.mark.parametrize(
        ("prompt", "params", "message"),
        [
            pytest.param(0, SamplingParams(), "0 tokens", id="empty"),
            pytest.param(20, SamplingParams(), "20 tokens, the limit is 19", id="no room for a token"),
            pytest.param(21, SamplingParams(max_tokens=0), "21 tokens, the limit is 20", id="not even without output"),
        ],
    )
    def test_what_can_never_run_is_refused_at_once(self, prompt: int, params: SamplingParams, message: str) -> None:
        """Both by the context and by the size of the cache, whichever is less."""
        for scheduler in (a_scheduler(context=20), a_scheduler(blocks=5)):
            with pytest.raises(InvalidRequestError, match=message):
                scheduler.add(a_sequence(prompt, params=params))
            assert not scheduler.has_work

    def test_the_longest_prompt_is_accepted(self) -> None:
        scheduler = a_scheduler(blocks=5)
        added(scheduler, a_sequence(scheduler.max_prompt_tokens), a_sequence(20, params=SamplingParams(max_tokens=0)))

        while scheduler.has_work:
            a_step(scheduler)

        assert [sequence.finish_reason for sequence in scheduler.pop_finished()] == ["length", "length"]


class TestPreemption:
    def crowded(
        self, policy: SchedulingPolicy = SchedulingPolicy.FCFS, priorities: tuple[int, int] = (0, 0)
    ) -> tuple[Scheduler, Sequence, Sequence]:
        """Two sequences in 4 blocks, both about to need a third: one has to go."""
        scheduler = a_scheduler(blocks=4, policy=policy, prefix_caching=False)
        params = SamplingParams(max_tokens=8)
        first, second = added(
            scheduler,
            a_sequence(4, params=params, priority=priorities[0]),
            a_sequence(4, params=params, priority=priorities[1]),
        )
        for _ in range(5):
            a_step(scheduler)
        return scheduler, first, second

    def test_the_newest_gives_way_and_nothing_is_admitted_in_that_step(self) -> None:
        scheduler, first, second = self.crowded()
        added(scheduler, a_sequence(1))

        output, _ = a_step(scheduler)

        assert output.preempted == (second.sequence_id,)
        assert ranges(output) == {first.sequence_id: (8, 9)}
        assert second.status is SequenceStatus.PREEMPTED
        assert second.block_ids == []
        assert scheduler.stats().preemptions == 1

    def test_the_room_that_preemption_made_is_not_given_to_a_newcomer(self) -> None:
        """Even to one that is more urgent and would fit: it would be the next reason to preempt."""
        scheduler, first, second = self.crowded(SchedulingPolicy.PRIORITY)
        (urgent,) = added(scheduler, a_sequence(1, priority=-1))

        made_room, _ = a_step(scheduler)
        next_step, _ = a_step(scheduler)

        assert made_room.preempted == (second.sequence_id,)
        assert list(ranges(made_room)) == [first.sequence_id]
        assert list(ranges(next_step)) == [first.sequence_id, urgent.sequence_id]

    def test_under_priority_the_least_urgent_gives_way_although_it_came_first(self) -> None:
        scheduler, first, second = self.crowded(SchedulingPolicy.PRIORITY, priorities=(1, 0))

        output, _ = a_step(scheduler)

        assert output.preempted == (first.sequence_id,)
        assert ranges(output) == {second.sequence_id: (8, 9)}

    def test_a_victim_that_already_had_its_place_in_the_step_loses_it(self) -> None:
        """The older, less urgent one is asked first and takes the last block; then the other needs one."""
        scheduler = a_scheduler(blocks=4, policy=SchedulingPolicy.PRIORITY, prefix_caching=False, budget=9, share=8)
        (low,) = added(scheduler, a_sequence(3, params=LONG, priority=5))
        a_step(scheduler)
        (high,) = added(scheduler, a_sequence(9, params=LONG, priority=0))
        a_step(scheduler)

        output, results = a_step(scheduler)

        assert output.preempted == (low.sequence_id,)
        assert ranges(output) == {high.sequence_id: (8, 9)}
        assert [result.sequence for result in results] == [high]

    def test_the_budget_of_a_victim_goes_to_those_after_it(self) -> None:
        plan = _StepPlan(budget=8)
        victim, prompt = a_sequence(3), a_sequence(9)
        plan.add(victim, 3)
        plan.add(prompt, 1)

        plan.preempt(victim)
        plan.preempt(a_sequence(1))

        assert plan.budget == 7
        assert list(plan.scheduled) == [prompt.sequence_id]

    def test_streamed_tokens_are_neither_repeated_nor_lost(self) -> None:
        scheduler, first, second = self.crowded()
        before = second.output_token_ids
        results = []

        while scheduler.has_work:
            results += a_step(scheduler)[1]

        told = [token.token_id for result in results if result.sequence is second for token in result.tokens]
        assert second.output_token_ids == before + told
        assert (first.num_output_tokens, second.num_output_tokens) == (8, 8)
        assert (first.num_preemptions, second.num_preemptions) == (0, 1)

    def test_a_resumed_sequence_computes_all_it_knows_before_it_samples(self) -> None:
        scheduler, first, second = self.crowded()
        a_step(scheduler)
        scheduler.abort(first.sequence_id)

        output, results = a_step(scheduler)

        assert ranges(output) == {second.sequence_id: (0, 9)}
        assert [len(result.tokens) for result in results] == [1]

    def test_it_waits_until_all_it_knows_fits_and_goes_before_the_others(self) -> None:
        scheduler, first, second = self.crowded()
        (later,) = added(scheduler, a_sequence(1))

        for _ in range(3):
            output, _ = a_step(scheduler)
            assert second.status is SequenceStatus.PREEMPTED
        assert first.is_finished
        output, _ = a_step(scheduler)

        assert list(ranges(output)) == [second.sequence_id, later.sequence_id]

    def test_a_preempted_sequence_can_be_aborted(self) -> None:
        scheduler, _, second = self.crowded()
        a_step(scheduler)

        assert scheduler.abort(second.sequence_id)

        scheduler.check_integrity()
        assert scheduler.pop_finished() == [second]

    def test_cached_tokens_are_those_of_the_first_admission(self) -> None:
        """What usage reports must not grow because the server was short of memory."""
        scheduler = a_scheduler(blocks=4)
        added(scheduler, *(a_sequence(4, params=SamplingParams(max_tokens=8)) for _ in range(2)))

        while scheduler.has_work:
            a_step(scheduler)

        finished = scheduler.pop_finished()
        assert [sequence.num_preemptions for sequence in finished] == [0, 1]
        assert [sequence.num_cached_tokens for sequence in finished] == [0, 0]
        assert (scheduler.stats().prefix_queries, scheduler.stats().prefix_hits) == (8, 0)


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


class TestPromptLogprobs:
    def logprobs(self, start: int, end: int) -> tuple[PromptLogprob, ...]:
        return tuple(
            PromptLogprob(position=i, logprob=TokenLogprob(token_id=i, logprob=-1.0, rank=1)) for i in range(start, end)
        )

    def test_they_are_passed_on_chunk_by_chunk(self) -> None:
        scheduler = a_scheduler(budget=4)
        (sequence,) = added(scheduler, a_sequence(6, params=SamplingParams(prompt_logprobs=0, max_tokens=0)))
        told = []

        for part in (self.logprobs(1, 5), self.logprobs(5, 6)):
            output = scheduler.schedule(0.0)
            runner_output = RunnerOutput(sampled={}, prompt_logprobs={sequence.sequence_id: part})
            told += scheduler.update(output, runner_output, 0.0)

        assert [[item.position for item in result.prompt_logprobs] for result in told] == [[1, 2, 3, 4], [5]]
        assert [result.finish_reason for result in told] == [None, "length"]

    def test_a_scored_prompt_takes_a_smaller_share_so_that_its_logits_hold_up_nobody(self) -> None:
        scheduler = a_scheduler(budget=64, share=16)
        scored, plain = added(
            scheduler, a_sequence(40, params=SamplingParams(prompt_logprobs=0, max_tokens=0)), a_sequence(40)
        )

        beside = {item.sequence.sequence_id: item.num_tokens for item in scheduler.schedule(0.0).scheduled}
        scheduler.abort(plain.sequence_id)
        alone = [item.num_tokens for item in scheduler.schedule(0.0).scheduled]

        assert beside == {scored.sequence_id: 4, plain.sequence_id: 16}
        assert alone == [40]

    def test_a_scored_prompt_goes_on_however_small_the_share(self) -> None:
        scheduler = a_scheduler(budget=64, share=2)
        scored, _ = added(
            scheduler, a_sequence(40, params=SamplingParams(prompt_logprobs=0, max_tokens=0)), a_sequence(40)
        )

        beside = {item.sequence.sequence_id: item.num_tokens for item in scheduler.schedule(0.0).scheduled}

        assert beside[scored.sequence_id] == 1

    def test_a_recomputation_reports_none_twice(self) -> None:
        scheduler = a_scheduler()
        (sequence,) = added(scheduler, a_sequence(6, params=SamplingParams(prompt_logprobs=0)))
        sequence.num_reported_prompt_logprobs = 4

        output = scheduler.schedule(0.0)
        runner_output = RunnerOutput(
            sampled={sequence.sequence_id: SampledToken(token_id=7)},
            prompt_logprobs={sequence.sequence_id: self.logprobs(1, 6), SequenceId(10**9): ()},
        )
        (result,) = scheduler.update(output, runner_output, 0.0)

        assert [item.position for item in result.prompt_logprobs] == [4, 5]

        output = scheduler.schedule(0.0)
        (result,) = scheduler.update(output, runner_output, 0.0)

        assert result.prompt_logprobs == ()
        assert sequence.num_reported_prompt_logprobs == 6


@pytest.mark.parametrize(
    "wrong", [{"budget": 0}, {"seqs": 0}, {"context": 0}, {"watermark": 1.0}, {"watermark": -0.1}, {"share": -1}]
)
def test_limits_that_make_no_sense_are_our_own_mistake(wrong: dict[str, float]) -> None:
    with pytest.raises(AssertionError):
        a_scheduler(**wrong)  # type: ignore[arg-type]
