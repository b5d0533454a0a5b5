"""What a step computes, and how sequences end; blocks of 4 tokens, 64 tokens a step unless a test says else."""

from __future__ import annotations

import pytest

from octavo_server.engine.outputs import RunnerOutput, SampledToken, SequenceId
from octavo_server.engine.request import FinishReason, SamplingParams
from octavo_server.engine.scheduler import Scheduler
from octavo_server.engine.sequence import Sequence
from octavo_testing.sequences import LONG, a_scheduler, a_sequence, a_step, added, ranges


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

    def test_the_stamp_is_of_the_first_step(self) -> None:
        scheduler = a_scheduler(budget=4)
        (sequence,) = added(scheduler, a_sequence(8))

        for now in (1.0, 2.0, 3.0):
            a_step(scheduler, now=now)

        assert sequence.first_scheduled_s == 1.0

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
        results = scheduler.update(output, RunnerOutput(sampled=sampled))

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


@pytest.mark.parametrize(
    "wrong", [{"budget": 0}, {"seqs": 0}, {"context": 0}, {"watermark": 1.0}, {"watermark": -0.1}, {"share": -1}]
)
def test_limits_that_make_no_sense_are_our_own_mistake(wrong: dict[str, float]) -> None:
    with pytest.raises(AssertionError):
        a_scheduler(**wrong)  # type: ignore[arg-type]
