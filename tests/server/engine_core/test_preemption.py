"""Who gives way where blocks run out, and how it comes back; blocks of 4 tokens, 64 tokens a step unless a test says else."""

from __future__ import annotations

from octavo_server.engine.request import SamplingParams
from octavo_server.engine.scheduler import Scheduler, _StepPlan
from octavo_server.engine.sequence import Sequence, SequenceStatus
from octavo_server.engine.waiting_queue import SchedulingPolicy
from octavo_testing.sequences import LONG, a_scheduler, a_sequence, a_step, added, ranges


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
        plan.add(victim, 0, 3, is_last=True)
        plan.add(prompt, 0, 1, is_last=False)

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
