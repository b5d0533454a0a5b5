"""Log-probabilities of prompts, on their way through the scheduler; blocks of 4 tokens, 64 tokens a step unless a test says else."""

from __future__ import annotations

from octavo_server.engine.outputs import PromptLogprob, RunnerOutput, SampledToken, SequenceId, TokenLogprob
from octavo_server.engine.request import SamplingParams
from octavo_testing.sequences import a_scheduler, a_sequence, added


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
            told += scheduler.update(output, runner_output)

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
        (result,) = scheduler.update(output, runner_output)

        assert [item.position for item in result.prompt_logprobs] == [4, 5]

        output = scheduler.schedule(0.0)
        (result,) = scheduler.update(output, runner_output)

        assert result.prompt_logprobs == ()
        assert sequence.num_reported_prompt_logprobs == 6
