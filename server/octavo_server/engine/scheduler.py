"""Decides what each step computes, and what a step's tokens mean for each sequence.

There are no phases. Every sequence has tokens that it knows and tokens whose K/V exist; a step hands out one budget of
tokens so that the second catch up with the first. Prefill, chunk, prefix hit, decode and resume differ only in numbers.

The order of one step, and why:
1. Running sequences, oldest admission first. None is ever left out: what one takes does not grow from step to step, and
   a newcomer gets only what is left. So a stream has its token in every step, whatever prompts run beside it.
2. Waiting ones, only if nothing was preempted: what is admitted now would take the room that was just made.
   A prompt enters only if all of it fits, beside what running prompts were promised: admitting by the first chunk
   makes preemption and resumption play ping-pong. One whose beginning is being computed just now waits for the hit, so
   that n outputs of a prompt, or a burst of requests with one long beginning, compute it once.

Preemption forgets blocks, never tokens: the victim waits in front and computes its known tokens again.
Nothing is advanced before `update`, so a step whose execution raised may simply be scheduled again. A step may be decided
while the one before it is under way (`launched`): a sequence then counts the token that comes, and ends a step late where
that token ends it, unless it is the last that it may have. What comes for one that was preempted meanwhile is dropped, and
computed again.
Every sequence that `add` accepted comes out of `pop_finished` exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from octavo_server.engine.kv_pressure import OutputLengths, WaitingDemand
from octavo_server.engine.outputs import GRAMMAR_ENDED, ScheduledSequence, SchedulerOutput, SequenceOutput
from octavo_server.engine.request import FinishReason
from octavo_server.engine.sequence import SequenceStatus
from octavo_server.engine.waiting_queue import SchedulingPolicy, make_waiting_queue, priority_key
from octavo_server.errors import InvalidRequestError

if TYPE_CHECKING:
    from octavo_server.engine.kv_cache_manager import KVCacheManager
    from octavo_server.engine.outputs import BlockId, PromptLogprob, RunnerOutput, SampledToken, SequenceId
    from octavo_server.engine.request import Request
    from octavo_server.engine.sequence import Sequence

SCORED_TOKEN_COST = 4
"""Computing a prompt token's logits and their order takes as long as this many tokens without, in small models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits and policy; all resolved, nothing is "auto" here."""

    max_num_batched_tokens: int
    """Tokens that one step computes at most."""
    max_num_seqs: int
    """Sequences that run at once; no more than `max_num_batched_tokens` ever do, as each gets a token a step."""
    max_model_len: int
    """Tokens of prompt and output together."""
    policy: SchedulingPolicy = SchedulingPolicy.FCFS
    long_prefill_token_threshold: int = 0
    """Tokens of one prompt in a step while others run or wait; 0: a quarter of `max_num_batched_tokens`."""
    has_fixed_pieces: bool = False
    """Cut each prompt at the multiples of `long_prefill_token_threshold`, whatever else runs: a token then stands in the
    same piece always. A piece that a step has no room for waits."""
    watermark: float = 0.01
    """Share of all blocks that admission leaves free for the next tokens of what runs."""
    eos_token_ids: frozenset[int] = frozenset()
    overlaps: bool = False
    """Whether a step is decided before the tokens of the one before it are known."""

    def __post_init__(self) -> None:
        assert min(self.max_num_batched_tokens, self.max_num_seqs, self.max_model_len) >= 1
        assert 0 <= self.watermark < 1
        assert self.long_prefill_token_threshold >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStats:
    """The scheduler at one moment; counts are totals since the start."""

    running: int
    waiting: int
    kv_usage: float
    """Held blocks over all blocks, 0 to 1."""
    pressure: float
    """See kv_pressure; may exceed 1."""
    waste: float
    """Slots allocated and not used over slots allocated, 0 to 1."""
    preemptions: int
    prefix_queries: int
    """Prompt tokens that were looked up, once a sequence."""
    prefix_hits: int
    """Prompt tokens of those that were found."""


@dataclass(slots=True)
class _StepPlan:
    """The step while it is being decided."""

    budget: int
    scheduled: dict[SequenceId, ScheduledSequence] = field(default_factory=dict)
    preempted: list[SequenceId] = field(default_factory=list)

    def add(self, sequence: Sequence, start: int, num_tokens: int, *, is_last: bool) -> None:
        """`is_last`: whether nothing that the sequence counts lies behind these tokens."""
        assert num_tokens > 0, f"sequence {sequence.sequence_id} was left out of a step"
        samples, pools = is_last and sequence.max_output_tokens > 0, is_last and sequence.request.pools
        self.scheduled[sequence.sequence_id] = ScheduledSequence(sequence, start, num_tokens, samples, pools)
        self.budget -= num_tokens

    def preempt(self, sequence: Sequence) -> None:
        """The victim may already have a place in this step."""
        item = self.scheduled.pop(sequence.sequence_id, None)
        self.budget += item.num_tokens if item else 0
        self.preempted.append(sequence.sequence_id)


class Scheduler:
    """The only writer of sequences. Time comes in as a parameter."""

    def __init__(self, config: SchedulerConfig, kv: KVCacheManager) -> None:
        self.config = config
        self.kv = kv
        self.max_sequence_tokens = min(config.max_model_len, kv.capacity_tokens)
        self._prefill_share = config.long_prefill_token_threshold or max(1, config.max_num_batched_tokens // 4)
        if config.has_fixed_pieces:
            self._prefill_share = min(self._prefill_share, config.max_num_batched_tokens)
        self._watermark_blocks = int(config.watermark * kv.num_usable_blocks)
        self._waiting = make_waiting_queue(config.policy, lambda sequence: len(kv.match_prefix(sequence)))
        # In the order of admission, so that the last is the newest
        self._running: dict[SequenceId, Sequence] = {}
        self._sequences: dict[SequenceId, Sequence] = {}
        self._finished: list[Sequence] = []
        self._lengths = OutputLengths()
        self._demand = WaitingDemand(kv, self._lengths)
        self._num_preemptions = 0
        self._prefix_queries = 0
        self._prefix_hits = 0

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt that leaves room for one token of output."""
        return self.max_sequence_tokens - 1

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return bool(self._sequences)

    def check(self, request: Request) -> None:
        """Whether the request can ever run.

        Raises:
            InvalidRequestError: its prompt is empty, or too long even for an empty engine.
        """
        num_tokens = len(request.prompt_token_ids)
        limit = self.max_sequence_tokens if request.params.max_tokens == 0 else self.max_prompt_tokens
        if num_tokens == 0:
            raise InvalidRequestError("the prompt has 0 tokens; give at least 1", param="prompt")
        if num_tokens > limit:
            raise InvalidRequestError(
                f"the prompt has {num_tokens:,} tokens, the limit is {limit:,}; shorten it, or raise --max-model-len "
                f"({self.config.max_model_len:,}) and the KV cache ({self.kv.capacity_tokens:,} tokens)",
                param="prompt",
            )

    def add(self, sequence: Sequence) -> None:
        """Accepts a sequence into the waiting queue.

        Raises:
            InvalidRequestError: as `check`.
        """
        assert sequence.sequence_id not in self._sequences, f"sequence {sequence.sequence_id} was added twice"
        self.check(sequence.request)
        room = self.max_sequence_tokens - sequence.num_prompt_tokens
        asked = sequence.request.params.max_tokens
        sequence.max_output_tokens = room if asked is None else min(asked, room)
        self._sequences[sequence.sequence_id] = sequence
        self._waiting.push(sequence)
        self._demand.add(sequence)

    def schedule(self, now: float) -> SchedulerOutput:
        """Decides the next step; while there is work, and none under way, it is never empty."""
        plan = _StepPlan(self.config.max_num_batched_tokens)
        # A prompt that is alone stalls nobody
        stalls = len(self._sequences) > 1 or self.config.has_fixed_pieces
        share = self._prefill_share if stalls else SCORED_TOKEN_COST * plan.budget
        self._schedule_running(plan, share)
        if not plan.preempted:
            self._schedule_waiting(plan, share, now)
        return SchedulerOutput(scheduled=tuple(plan.scheduled.values()), preempted=tuple(plan.preempted))

    @property
    def needs_tokens(self) -> bool:
        """Whether a sequence's next token cannot be chosen before its last one is known on the host."""
        return any(
            sequence.edits_logits
            and sequence.num_unread_tokens
            and (sequence.grammar is not None or sequence.token_counts is not None or sequence.request.bad_token_ids)
            for sequence in self._running.values()
        )

    def launched(self, output: SchedulerOutput) -> None:
        """Counts a step that is under way, so that the next may be decided before `update` has taken it in."""
        for item in output.scheduled:
            sequence = item.sequence
            sequence.num_launched_tokens += item.num_tokens
            sequence.num_unread_tokens += item.samples

    def forget_launched(self) -> None:
        """As if no step were under way: what was launched will not come back, and is decided anew."""
        for sequence in self._running.values():
            sequence.num_launched_tokens = sequence.num_unread_tokens = 0

    def update(self, output: SchedulerOutput, runner_output: RunnerOutput) -> list[SequenceOutput]:
        """Takes in what a step gave; says what is new for each sequence, ended ones included."""
        results: list[SequenceOutput] = []
        for item in output.scheduled:
            sequence = item.sequence
            # Else it was aborted while the step ran
            if sequence.status is SequenceStatus.RUNNING:
                if sequence.num_launched_tokens:
                    sequence.num_launched_tokens -= item.num_tokens
                    sequence.num_unread_tokens -= item.samples
                result = self._advance(item, runner_output)
                if result is not None:
                    results.append(result)
        return results

    def abort(self, sequence_id: SequenceId) -> bool:
        """Ends a sequence that nobody wants any more; False if it has already ended."""
        return self.finish(sequence_id, FinishReason.ABORT)

    def finish(self, sequence_id: SequenceId, reason: FinishReason, stop_reason: str | int | None = None) -> bool:
        """Ends a sequence from outside (a stop string, an abort, an error); False if it has already ended."""
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            return False
        self._finish(sequence, reason, stop_reason)
        return True

    def pop_finished(self) -> list[Sequence]:
        """Sequences that ended since the last call, each exactly once, whatever ended them."""
        finished, self._finished = self._finished, []
        return finished

    def stats(self) -> SchedulerStats:
        """What to report now."""
        running, waiting = len(self._running), len(self._waiting)
        blocks = self.kv.num_used_blocks + self._demand.blocks()
        return SchedulerStats(
            running=running,
            waiting=waiting,
            kv_usage=self.kv.usage,
            pressure=max(blocks / self.kv.num_usable_blocks, (running + waiting) / self.config.max_num_seqs),
            waste=self.kv.waste(self._running.values()),
            preemptions=self._num_preemptions,
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
        )

    def check_integrity(self) -> None:
        """Asserts that queues, statuses, blocks and cache agree; for tests."""
        running, waiting = list(self._running.values()), list(self._waiting)
        assert {seq.sequence_id for seq in running + waiting} == set(self._sequences)
        assert len(running) + len(waiting) == len(self._sequences), "a sequence is queued twice"
        assert len(running) <= self.config.max_num_seqs
        assert all(seq.status is SequenceStatus.RUNNING for seq in running)
        assert all(seq.status in (SequenceStatus.WAITING, SequenceStatus.PREEMPTED) for seq in waiting)
        assert all(not seq.block_ids and seq.num_computed_tokens == 0 for seq in waiting + self._finished)
        assert all(seq.is_finished and seq.finish_reason is not None for seq in self._finished)
        assert all(seq.num_computed_tokens < seq.num_tokens <= self.max_sequence_tokens for seq in running)
        self.kv.check_integrity(running)

    def _schedule_running(self, plan: _StepPlan, share: int) -> None:
        for sequence in list(self._running.values()):
            # Else it was preempted by one before it
            if sequence.status is SequenceStatus.RUNNING:
                self._schedule_tokens(sequence, share, plan)

    def _schedule_waiting(self, plan: _StepPlan, share: int, now: float) -> None:
        if not self._has_room(plan):
            return
        promised = sum(self._blocks_to_come(sequence) for sequence in self._running.values())
        in_the_making = {_next_hash(sequence, sequence.num_published_blocks) for sequence in self._running.values()}
        while self._has_room(plan):
            sequence = self._waiting.peek()
            hits = self.kv.match_prefix(sequence)
            next_hash = _next_hash(sequence, len(hits))
            # Another is computing the very block that it lacks: it will be a hit in a step or a few
            if next_hash is not None and next_hash in in_the_making and sequence.reads_prefix_cache:
                return
            # With nothing running there is nothing to keep blocks for
            spare = promised + self._watermark_blocks if self._running else 0
            if not self.kv.can_hold(sequence, hits, spare_blocks=spare):
                return
            wanted = min(sequence.num_tokens, _own_share(sequence, share))
            if self.config.has_fixed_pieces and wanted > plan.budget:
                return
            self._admit(sequence, hits, now)
            self._schedule_tokens(sequence, share, plan)
            promised += self._blocks_to_come(sequence)
            in_the_making.add(next_hash)

    def _has_room(self, plan: _StepPlan) -> bool:
        """Whether one more sequence may enter, memory aside."""
        return len(self._waiting) > 0 and plan.budget > 0 and len(self._running) < self.config.max_num_seqs

    def _schedule_tokens(self, sequence: Sequence, share: int, plan: _StepPlan) -> None:
        """Its next tokens, as far as `share` and the budget go; none where what is under way is all that it computes."""
        start = sequence.num_computed_tokens + sequence.num_launched_tokens
        num_counted = len(sequence.token_ids) + sequence.num_unread_tokens
        num_left = num_counted - start
        is_over = sequence.num_unread_tokens and num_counted - sequence.num_prompt_tokens >= sequence.max_output_tokens
        if num_left == 0 or is_over:
            return
        num_tokens = min(num_left, plan.budget)
        if num_tokens > 1:
            num_tokens = min(num_tokens, _own_share(sequence, share))
        end = start + num_tokens
        if end <= len(sequence.block_ids) * self.kv.block_size or self._make_room(sequence, end, plan):
            plan.add(sequence, start, num_tokens, is_last=num_tokens == num_left)

    def _make_room(self, sequence: Sequence, num_tokens: int, plan: _StepPlan) -> bool:
        """Gives the sequence blocks for its first `num_tokens` tokens; False if it had to make room itself."""
        while (blocks := self.kv.allocate(len(sequence.block_ids), num_tokens)) is None:
            victim = self._victim()
            self._preempt(victim, plan)
            if victim is sequence:
                return False
        sequence.block_ids += blocks
        return True

    def _blocks_to_come(self, sequence: Sequence) -> int:
        """Blocks that a running sequence will take for the tokens that it already knows."""
        return self.kv.blocks_for(sequence.num_tokens) - len(sequence.block_ids)

    def _victim(self) -> Sequence:
        if self.config.policy is SchedulingPolicy.PRIORITY:
            return max(self._running.values(), key=priority_key)
        return next(reversed(self._running.values()))

    def _admit(self, sequence: Sequence, hits: list[BlockId], now: float) -> None:
        self._waiting.remove(sequence)
        self._demand.remove(sequence)
        self._running[sequence.sequence_id] = sequence
        self.kv.share(hits)
        sequence.status = SequenceStatus.RUNNING
        sequence.block_ids = hits
        sequence.num_published_blocks = len(hits)
        sequence.num_computed_tokens = len(hits) * self.kv.block_size
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = now
            self._count_hits(sequence)

    def _count_hits(self, sequence: Sequence) -> None:
        sequence.num_cached_tokens = sequence.num_computed_tokens
        if self.kv.enable_prefix_caching and sequence.reads_prefix_cache:
            self._prefix_queries += sequence.num_prompt_tokens
            self._prefix_hits += sequence.num_cached_tokens

    def _preempt(self, sequence: Sequence, plan: _StepPlan) -> None:
        del self._running[sequence.sequence_id]
        self._release(sequence, keep=True)
        sequence.status = SequenceStatus.PREEMPTED
        sequence.num_preemptions += 1
        self._num_preemptions += 1
        self._waiting.push_front(sequence)
        self._demand.add(sequence)
        plan.preempt(sequence)

    def _advance(self, item: ScheduledSequence, runner_output: RunnerOutput) -> SequenceOutput | None:
        sequence, sequence_id = item.sequence, item.sequence.sequence_id
        if sequence_id in runner_output.refused or sequence_id in runner_output.failed:
            sequence.is_refused = sequence_id in runner_output.refused
            endings = runner_output.refused if sequence.is_refused else runner_output.failed
            sequence.error = endings[sequence_id]
            self._finish(sequence, FinishReason.ERROR, keep=False)
            return SequenceOutput(sequence, finish_reason=FinishReason.ERROR)
        computed = sequence.num_computed_tokens = item.start + item.num_tokens
        if computed >= (sequence.num_published_blocks + 1) * self.kv.block_size:
            sequence.num_published_blocks = self.kv.publish(sequence)
        tokens: tuple[SampledToken, ...] = ()
        hidden_state = None
        if item.samples:
            token = runner_output.sampled[sequence_id]
            tokens = (token,)
            self._append_token(sequence, token.token_id)
        elif item.pools:
            hidden_state = runner_output.hidden_states[sequence_id]
            self._finish(sequence, FinishReason.STOP)
        elif computed == sequence.num_tokens:
            # Asked for its prompt alone (max_tokens 0): nothing is sampled and nothing is left
            self._finish(sequence, FinishReason.LENGTH)
        prompt_logprobs = _unreported(sequence, runner_output) if runner_output.prompt_logprobs else ()
        if not (tokens or prompt_logprobs or sequence.is_finished):
            return None
        return SequenceOutput(sequence, tokens, prompt_logprobs, hidden_state, sequence.finish_reason)

    def _append_token(self, sequence: Sequence, token_id: int) -> None:
        """Takes in a sampled token and applies the stop rules; every rule but the length waits for `min_tokens`."""
        sequence.append(token_id)
        params, num_output = sequence.request.params, sequence.num_output_tokens
        may_stop = num_output >= params.min_tokens
        if sequence.grammar is not None and not sequence.grammar.accept(token_id):
            sequence.is_refused = True
            sequence.error = f"{GRAMMAR_ENDED}{sequence.grammar.error}"
            self._finish(sequence, FinishReason.ERROR, keep=False)
        elif token_id in self.config.eos_token_ids and _ends_at_eos(sequence, may_stop=may_stop):
            self._finish(sequence, FinishReason.STOP)
        elif may_stop and token_id in params.stop_token_ids:
            self._finish(sequence, FinishReason.STOP, token_id)
        elif num_output >= sequence.max_output_tokens:
            self._finish(sequence, FinishReason.LENGTH)

    def _finish(
        self, sequence: Sequence, reason: FinishReason, stop_reason: str | int | None = None, *, keep: bool = True
    ) -> None:
        if sequence.status is SequenceStatus.RUNNING:
            del self._running[sequence.sequence_id]
            self._release(sequence, keep=keep)
        else:
            self._waiting.remove(sequence)
            self._demand.remove(sequence)
        del self._sequences[sequence.sequence_id]
        sequence.status = SequenceStatus.FINISHED
        sequence.finish_reason = reason
        sequence.stop_reason = stop_reason
        self._finished.append(sequence)
        # What was asked for no output says nothing of the next one's length
        if reason in (FinishReason.STOP, FinishReason.LENGTH) and sequence.max_output_tokens:
            self._lengths.add(sequence.num_output_tokens)

    def _release(self, sequence: Sequence, *, keep: bool) -> None:
        self.kv.free(sequence, keep=keep)
        sequence.block_ids = []
        sequence.num_computed_tokens = sequence.num_launched_tokens = sequence.num_unread_tokens = 0


def _ends_at_eos(sequence: Sequence, *, may_stop: bool) -> bool:
    """A grammar allows an end only where it is one, whatever else was asked."""
    return sequence.grammar is not None or (may_stop and not sequence.request.params.ignore_eos)


def _own_share(sequence: Sequence, share: int) -> int:
    """Tokens that it may compute where `share` plain ones are allowed."""
    return share if sequence.reads_prefix_cache else max(1, share // SCORED_TOKEN_COST)


def _next_hash(sequence: Sequence, num_blocks: int) -> bytes | None:
    """Name of the first block beyond `num_blocks` published ones; None where the sequence has no such full block."""
    return sequence.block_hashes[num_blocks] if num_blocks < len(sequence.block_hashes) else None


def _unreported(sequence: Sequence, runner_output: RunnerOutput) -> tuple[PromptLogprob, ...]:
    """The step's prompt log-probabilities without those that an earlier computation already reported."""
    given = runner_output.prompt_logprobs.get(sequence.sequence_id, ())
    new = tuple(item for item in given if item.position >= sequence.num_reported_prompt_logprobs)
    if new:
        sequence.num_reported_prompt_logprobs = new[-1].position + 1
    return new
