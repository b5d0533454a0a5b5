"""Turns requests into text, one step at a time. Synchronous: one thread owns an engine and calls it.

`step` is the story: schedule, execute, update, detokenize, record. A request with n > 1 fans out into n sequences that
share their prompt's blocks. A step that raises is repeated in halves until the offender is alone; it ends with an error
and the others go on.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from octavo_server.engine.admission import Limits, check_request
from octavo_server.engine.detokenizer import Detokenizer, TextDelta
from octavo_server.engine.outputs import PromptLogprob, RunnerOutput, SampledToken, SchedulerOutput, SequenceId
from octavo_server.engine.records import EngineRecords, FinishedRecord, StepRecord
from octavo_server.engine.request import FinishReason
from octavo_server.engine.sequence import Sequence, SequenceStatus
from octavo_server.engine.waiting_queue import SchedulingPolicy
from octavo_server.errors import EngineDeadError
from octavo_server.metrics import EngineSnapshot, RequestTimes

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Items

    from octavo_server.engine.detokenizer import TokenTable
    from octavo_server.engine.outputs import Launched, ModelRunner, SequenceOutput
    from octavo_server.engine.request import Request
    from octavo_server.engine.scheduler import Scheduler
    from octavo_server.structured_output.compiler import GrammarCompiler

logger = logging.getLogger(__name__)

MAX_FAILED_STEPS = 8
"""Steps in a row in which nothing succeeded, after which the engine itself is taken for broken."""

FAILED_MESSAGE = "the engine failed on this request; the server's log holds the reason"


class OutputDelta(NamedTuple):
    """What is new for one output of a request. The last one of each output has a `finish_reason`."""

    request_id: str
    index: int  # type: ignore[assignment]  # hides tuple's own, which nobody asks a delta for
    text: str = ""
    tokens: tuple[SampledToken, ...] = ()
    num_held_tokens: int = 0
    """Of all tokens so far, the last ones that the text does not show yet; with a `finish_reason`, never."""
    num_hidden_bytes: int = 0
    """Bytes that a stop string cut off the last token before those."""
    prompt_logprobs: tuple[PromptLogprob, ...] = ()
    hidden_state: bytes | None = None
    """Of a request that pools, with its last delta: float32 little-endian."""
    num_cached_tokens: int = 0
    """Prompt tokens that the prefix cache saved."""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    """Set where `finish_reason` is ERROR."""
    is_refused: bool = False
    """Whether that error is the request's own, which the client must change."""


@dataclass(slots=True, kw_only=True)
class _Group:
    """A request and what became of its sequences."""

    request: Request
    times: RequestTimes
    live: dict[SequenceId, _Output] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class _Output:
    """One sequence of a request."""

    sequence: Sequence
    group: _Group
    detokenizer: Detokenizer
    last_token_s: float | None = None


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A step that has been launched and not taken in."""

    decision: SchedulerOutput
    launched: Launched
    started: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What the engine knows of the model's tokens."""

    tokens: TokenTable
    size: int
    """The model's, which may be padded beyond the tokens that mean something."""
    grammars: GrammarCompiler


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineWatch:
    """What the engine asks about what goes on beside its steps."""

    check: Callable[[], None] = lambda: None
    """Raises EngineDeadError where steps have become impossible, which else the next one would tell."""
    compiled: Callable[[], Items[str]] = tuple
    """Names of kernels that were compiled since the last call."""


class Engine:
    """Owns the scheduler, the runner and the detokenizers."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        runner: ModelRunner,
        vocabulary: Vocabulary,
        keeps_records: bool = False,
        clock: Callable[[], float] = time.monotonic,
        seed: int = 0,
        watch: EngineWatch | None = None,
    ) -> None:
        self.limits = Limits(
            max_sequence_tokens=scheduler.max_sequence_tokens,
            vocab_size=vocabulary.size,
            ranks_by_priority=scheduler.config.policy is SchedulingPolicy.PRIORITY,
        )
        self._scheduler = scheduler
        self._runner = runner
        self.vocabulary = vocabulary
        self._records = EngineRecords() if keeps_records else None
        self._clock = clock
        watch = watch or EngineWatch()
        self.check, self._compiled = watch.check, watch.compiled
        self._overlaps = scheduler.config.overlaps
        """Decide and launch a step before the one before it has come back."""
        self._under_way: _UnderWay | None = None
        self._rng = random.Random(seed)
        self._groups: dict[str, _Group] = {}
        self._outputs: dict[SequenceId, _Output] = {}
        self._next_id = 0
        self._failed_steps = 0
        self._last_step_end_s: float | None = None

    @property
    def has_work(self) -> bool:
        """Whether `step` would compute anything."""
        return self._scheduler.has_work or self._under_way is not None

    def add_request(self, request: Request) -> None:
        """Accepts a request, as `params.n` sequences.

        Raises:
            InvalidRequestError: it can never run as it is; nothing was accepted.
        """
        check_request(request, self.limits)
        assert request.request_id not in self._groups, "request ids are made unique by the server"
        times = RequestTimes(arrival_s=request.arrival_s, prompt_tokens=len(request.prompt_token_ids))
        group = _Group(request=request, times=times)
        try:
            for index in range(request.params.n):
                sequence = self._make_sequence(request, index)
                output = _Output(sequence=sequence, group=group, detokenizer=self._make_detokenizer(request))
                self._scheduler.add(sequence)
                group.live[sequence.sequence_id] = output
        except Exception:
            for sequence_id in group.live:
                self._scheduler.abort(sequence_id)
            self._scheduler.pop_finished()
            raise
        self._outputs.update(group.live)
        self._groups[request.request_id] = group
        if self._records is not None:
            self._records.accepted_prompt_tokens.append(len(request.prompt_token_ids))

    def abort(self, request_id: str) -> bool:
        """Ends a request that nobody waits for; its blocks are free at once. False if it has already ended."""
        group = self._groups.get(request_id)
        if group is None:
            return False
        for output in list(group.live.values()):
            self._scheduler.abort(output.sequence.sequence_id)
            self._forget(output, FinishReason.ABORT)
        self._scheduler.pop_finished()
        return True

    def step(self) -> list[OutputDelta]:
        """One round; what is new for every sequence that has something new."""
        if self._overlaps:
            return self._step_overlapped()
        started = self._clock()
        decision = self._scheduler.schedule(started)
        return self._update(decision, self._execute(decision), started)

    def _step_overlapped(self) -> list[OutputDelta]:
        """Launches the next step, then takes in the one before it, which the device has done meanwhile."""
        started = self._clock()
        deltas: list[OutputDelta] = []
        if self._scheduler.needs_tokens:
            deltas += self._take_in()
        decision = self._scheduler.schedule(started)
        before, self._under_way = self._under_way, None
        if decision.scheduled:
            try:
                self._under_way = _UnderWay(decision, self._runner.launch(decision), started)
                self._scheduler.launched(decision)
            except EngineDeadError:
                raise
            except Exception:  # As in `_execute_isolating`, which does it again once all tokens are known
                logger.exception("a step could not be launched", extra={"num_sequences": len(decision.scheduled)})
                return deltas + self._finish(before) + self._repeat(decision, started)
        return deltas + self._finish(before)

    def _take_in(self) -> list[OutputDelta]:
        before, self._under_way = self._under_way, None
        return self._finish(before)

    def _finish(self, step: _UnderWay | None) -> list[OutputDelta]:
        """Waits for a step and takes it in; one that failed is repeated, and what was launched after it is dropped."""
        if step is None:
            return []
        try:
            result = step.launched.result()
        except EngineDeadError:
            raise
        except Exception:  # As in `_execute_isolating`
            logger.exception("a step failed", extra={"num_sequences": len(step.decision.scheduled)})
            self._under_way = None
            self._scheduler.forget_launched()
            return self._repeat(step.decision, step.started)
        return self._update(step.decision, self._counted(step.decision, result), step.started)

    def _repeat(self, decision: SchedulerOutput, started: float) -> list[OutputDelta]:
        """Does a step again and waits for it, without those that have ended or were preempted."""
        if self._records is not None:
            self._records.num_step_errors += 1
        still = tuple(
            item
            for item in decision.scheduled
            if item.sequence.status is SequenceStatus.RUNNING and item.start == item.sequence.num_computed_tokens
        )
        again = SchedulerOutput(scheduled=still)
        return self._update(again, self._execute(again), started) if still else []

    def _update(self, decision: SchedulerOutput, result: RunnerOutput, started: float) -> list[OutputDelta]:
        ended = self._clock()
        updates = self._scheduler.update(decision, result)
        deltas = [self._delta(update, ended) for update in updates]
        self._scheduler.pop_finished()
        self._record_step(decision, started, ended)
        return deltas

    def take_records(self) -> EngineRecords:
        """What was noted since the last call; nothing where the engine keeps none."""
        records = EngineRecords()
        if self._records is not None:
            records, self._records = self._records, records
        return records

    def snapshot(self) -> EngineSnapshot:
        """What to report now."""
        stats = self._scheduler.stats()
        return EngineSnapshot(
            num_running=stats.running,
            num_waiting=stats.waiting,
            kv_usage=stats.kv_usage,
            pressure=stats.pressure,
            kv_waste=stats.waste,
            block_size=self._scheduler.kv.block_size,
            num_blocks=self._scheduler.kv.num_usable_blocks,
            max_num_seqs=self._scheduler.config.max_num_seqs,
            prefix_queries=stats.prefix_queries,
            prefix_hits=stats.prefix_hits,
            preemptions=stats.preemptions,
        )

    def _make_sequence(self, request: Request, index: int) -> Sequence:
        self._next_id += 1
        seed = self._rng.getrandbits(63) if request.params.seed is None else _wrapped(request.params.seed + index)
        grammar = None if request.grammar is None else self.vocabulary.grammars.start(request.grammar)
        return Sequence(sequence_id=SequenceId(self._next_id), request=request, index=index, seed=seed, grammar=grammar)

    def _make_detokenizer(self, request: Request) -> Detokenizer:
        params = request.params
        return Detokenizer(
            self.vocabulary.tokens,
            stop=params.stop,
            include_stop=params.include_stop_str_in_output,
            skip_special_tokens=params.skip_special_tokens,
            shown_special_ids=request.shown_special_ids,
            min_tokens=params.min_tokens,
        )

    def _execute(self, decision: SchedulerOutput) -> RunnerOutput:
        return self._counted(decision, self._execute_isolating(decision))

    def _counted(self, decision: SchedulerOutput, result: RunnerOutput) -> RunnerOutput:
        """The result; notes steps in which nothing succeeded."""
        if not decision.scheduled or len(result.failed) < len(decision.scheduled):
            self._failed_steps = 0
            return result
        self._failed_steps += 1
        if self._failed_steps >= MAX_FAILED_STEPS:
            raise EngineDeadError(f"{self._failed_steps} steps in a row failed for every sequence")
        return result

    def _execute_isolating(self, decision: SchedulerOutput) -> RunnerOutput:
        """Runs the step; where it raises, runs its halves, so that only the offender fails."""
        try:
            return self._runner.execute(decision)
        except EngineDeadError:
            raise
        except Exception:  # The step loop must survive whatever one request provokes
            logger.exception("a step failed", extra={"num_sequences": len(decision.scheduled)})
            if self._records is not None:
                self._records.num_step_errors += 1
        if len(decision.scheduled) == 1:
            return RunnerOutput(sampled={}, failed={decision.scheduled[0].sequence.sequence_id: FAILED_MESSAGE})
        half = len(decision.scheduled) // 2
        first = self._execute_isolating(
            SchedulerOutput(scheduled=decision.scheduled[:half], preempted=decision.preempted)
        )
        second = self._execute_isolating(SchedulerOutput(scheduled=decision.scheduled[half:]))
        return RunnerOutput(
            sampled={**first.sampled, **second.sampled},
            prompt_logprobs={**first.prompt_logprobs, **second.prompt_logprobs},
            hidden_states={**first.hidden_states, **second.hidden_states},
            refused={**first.refused, **second.refused},
            failed={**first.failed, **second.failed},
        )

    def _delta(self, update: SequenceOutput, now: float) -> OutputDelta:
        sequence = update.sequence
        output = self._outputs[sequence.sequence_id]
        finish_reason, stop_reason, error = update.finish_reason, sequence.stop_reason, sequence.error
        try:
            released = self._text_of(update, output)
        except Exception:  # The others must not end with the one whose text cannot be made
            logger.exception("tokens could not be turned into text", extra={"request_id": sequence.request.request_id})
            released, finish_reason, error = TextDelta(""), FinishReason.ERROR, FAILED_MESSAGE
            self._scheduler.finish(sequence.sequence_id, FinishReason.ERROR)
        if released.stop is not None:
            finish_reason, stop_reason = FinishReason.STOP, released.stop
            # False where the same token also reached max_tokens: then it has already ended.
            self._scheduler.finish(sequence.sequence_id, FinishReason.STOP, released.stop)
        self._record_tokens(output, len(update.tokens), now)
        if finish_reason is not None:
            self._forget(output, finish_reason)
        return OutputDelta(
            request_id=sequence.request.request_id,
            index=sequence.index,
            text=released.text,
            tokens=update.tokens,
            num_held_tokens=released.num_held_tokens,
            num_hidden_bytes=released.num_hidden_bytes,
            prompt_logprobs=update.prompt_logprobs,
            hidden_state=update.hidden_state,
            num_cached_tokens=sequence.num_cached_tokens,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            error=error,
            is_refused=sequence.is_refused,
        )

    def _text_of(self, update: SequenceOutput, output: _Output) -> TextDelta:
        """What the step's tokens release, and all that was held where they are the last."""
        params = update.sequence.request.params
        if not params.detokenize:
            return TextDelta("")
        ids = [token.token_id for token in update.tokens]
        # The token that ended it (end of sequence, or a stop token) is counted but not shown.
        num_ending = int(update.finish_reason is FinishReason.STOP and not params.include_stop_str_in_output)
        released = output.detokenizer.append(ids[: len(ids) - num_ending])
        if released.stop is None and update.finish_reason is not None:
            return TextDelta(text=released.text + output.detokenizer.finish(), num_held_tokens=num_ending)
        return released

    def _forget(self, output: _Output, reason: FinishReason) -> None:
        group = output.group
        del self._outputs[output.sequence.sequence_id]
        del group.live[output.sequence.sequence_id]
        group.times.finish_reasons.append(reason)
        if group.live:
            return
        del self._groups[group.request.request_id]
        if self._records is not None:
            self._records.finished.append(FinishedRecord(times=group.times, ended_s=self._clock()))

    def _record_tokens(self, output: _Output, num_tokens: int, now: float) -> None:
        times = output.group.times
        if times.scheduled_s is None:
            times.scheduled_s = output.sequence.first_scheduled_s
        if num_tokens == 0:
            return
        gap_s = None if output.last_token_s is None else now - output.last_token_s
        output.last_token_s = times.last_token_s = now
        times.output_tokens += num_tokens
        is_first = times.first_token_s is None
        if is_first:
            times.first_token_s = now
        if self._records is None:
            return
        self._records.num_output_tokens += num_tokens
        if gap_s is not None:
            self._records.token_gaps_s.append(gap_s)
        if is_first:
            self._records.first_tokens_s.append(now - times.arrival_s)

    def _record_step(self, decision: SchedulerOutput, started: float, ended: float) -> None:
        before, gap_s = self._last_step_end_s, None
        if before is not None:
            # A step that was launched before the last had ended begins where that one ends.
            gap_s, started = max(0.0, started - before), max(started, before)
        self._last_step_end_s = self._clock() if self.has_work else None
        self._tell_compiled()
        if self._records is not None:
            self._records.steps.append(StepRecord(num_tokens=decision.num_tokens, seconds=ended - started, gap_s=gap_s))

    def _tell_compiled(self) -> None:
        """Everything was to be compiled before the first request: what was not has held its step up."""
        names = self._compiled()
        if not names:
            return
        logger.warning("kernels were compiled while requests waited: %s", ", ".join(names))
        if self._records is not None:
            self._records.num_compilations += len(names)


def _wrapped(seed: int) -> int:
    """Into the range of int64."""
    return (seed + 2**63) % 2**64 - 2**63
