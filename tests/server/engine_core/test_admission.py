"""Which prompts a step admits, and which it refuses at once; blocks of 4 tokens, 64 tokens a step unless a test says else."""

from __future__ import annotations

import pytest

from octavo_server.engine.request import SamplingParams
from octavo_server.engine.sequence import SequenceStatus
from octavo_server.errors import InvalidRequestError
from octavo_testing.sequences import LONG, a_scheduler, a_sequence, a_step, added, ranges


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
