"""Days of traffic in seconds: the real scheduler and cache over the fake model, with a clock that is only a number."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from random import Random

from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.outputs import SequenceId
from octavo_server.engine.request import FinishReason, Request, SamplingParams
from octavo_server.engine.scheduler import Scheduler, SchedulerConfig
from octavo_server.engine.sequence import Sequence
from octavo_testing.fake_model import FakeModel, FakeRunner

STEP_S = 0.01


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """How requests look. Lengths are exponential around their means: many short ones, some long."""

    mean_prompt: int
    mean_output: int
    max_prompt: int
    arrivals_per_step: float
    num_prefixes: int = 8
    """How many beginnings there are to share."""
    shared: float = 0.5
    """Share of prompts that begin with one of them."""
    varied: float = 0.0
    """Share of requests that ask for more than a length: several outputs, a salt, stop tokens and so on."""

    def requests(self, count: int, rng: Random, vocabulary: int) -> Iterator[Request]:
        """`count` requests in the order of arrival."""
        prefixes = [tuple(rng.randrange(vocabulary) for _ in range(self.mean_prompt)) for _ in range(self.num_prefixes)]
        now = 0.0
        for i in range(count):
            now += rng.expovariate(self.arrivals_per_step) * STEP_S
            length = min(self.max_prompt, 1 + int(rng.expovariate(1 / self.mean_prompt)))
            prefix = rng.choice(prefixes)[:length] if rng.random() < self.shared else ()
            rest = tuple(rng.randrange(vocabulary) for _ in range(length - len(prefix)))
            params = SamplingParams(max_tokens=1 + int(rng.expovariate(1 / self.mean_output)), ignore_eos=True)
            request = Request(request_id=str(i), prompt_token_ids=prefix + rest, params=params, arrival_s=now)
            yield _varied(request, rng, vocabulary) if rng.random() < self.varied else request


def _varied(request: Request, rng: Random, vocabulary: int) -> Request:
    params = dataclasses.replace(
        request.params,
        n=rng.choice((1, 1, 2, 4)),
        ignore_eos=rng.random() < 0.5,
        min_tokens=rng.randrange(1 + (request.params.max_tokens or 0)),
        stop_token_ids=tuple(rng.randrange(vocabulary) for _ in range(rng.choice((0, 20)))),
        prompt_logprobs=rng.choice((None, None, None, 0)),
    )
    return dataclasses.replace(
        request, params=params, priority=rng.choice((-1, 0, 0, 1)), cache_salt=rng.choice(("", "", "a", "b"))
    )


@dataclasses.dataclass(slots=True, kw_only=True)
class Report:
    """What a run showed."""

    added: int = 0
    """Outputs that were asked for."""
    outcomes: Counter[FinishReason] = dataclasses.field(default_factory=Counter)
    wrong: int = 0
    """Outputs that are not what the fake model alone says."""
    steps: int = 0
    waste: list[float] = dataclasses.field(default_factory=list)
    """KV waste after each step that had something running."""
    contiguous_waste: list[float] = dataclasses.field(default_factory=list)
    """The same if each running sequence had reserved the whole context."""
    largest_bookkeeping: int = 0
    """Entries in all containers of the scheduler at its fullest."""
    preemptions: int = 0

    @property
    def ended(self) -> int:
        return sum(self.outcomes.values())


class Simulator:
    """One engine's life under a stream of requests."""

    def __init__(
        self, config: SchedulerConfig, *, num_blocks: int, block_size: int = 16, vocabulary: int = 1000, seed: int = 0
    ) -> None:
        self.rng = Random(seed)
        self.kv = KVCacheManager(num_blocks=num_blocks, block_size=block_size)
        self.model = FakeModel(vocabulary=vocabulary, eos_token_id=0)
        self.scheduler = Scheduler(dataclasses.replace(config, eos_token_ids=frozenset({0})), self.kv)
        self.runner = FakeRunner(self.model, num_blocks=num_blocks, block_size=block_size)
        self.report = Report()
        self.now = 0.0
        self._next_id = 0
        self._live: dict[SequenceId, Sequence] = {}

    def run(self, requests: Iterable[Request], *, abort_share: float = 0.0, sample_every: int = 16) -> Report:
        """Runs all requests to their ends."""
        arrivals = iter(requests)
        upcoming = next(arrivals, None)
        while upcoming is not None or self.scheduler.has_work:
            while upcoming is not None and (upcoming.arrival_s <= self.now or not self.scheduler.has_work):
                self.now = max(self.now, upcoming.arrival_s)
                self._add(upcoming)
                upcoming = next(arrivals, None)
            self._step()
            self._collect()
            self._abort_some(abort_share)
            if self.report.steps % sample_every == 0:
                self._sample()
        self._collect()
        return self.report

    def _add(self, request: Request) -> None:
        for index in range(request.params.n):
            self._next_id += 1
            sequence = Sequence(sequence_id=SequenceId(self._next_id), request=request, index=index, seed=self._next_id)
            self._live[sequence.sequence_id] = sequence
            self.scheduler.add(sequence)
            self.report.added += 1

    def _step(self) -> None:
        output = self.scheduler.schedule(self.now)
        result = self.runner.execute(output)
        self.now += STEP_S
        self.scheduler.update(output, result)
        self.report.steps += 1

    def _abort_some(self, abort_share: float) -> None:
        # Each live sequence lives some 20 steps, so this share a step makes about `abort_share` in its life
        if self._live and self.rng.random() < abort_share * len(self._live) / 20:
            assert self.scheduler.abort(self.rng.choice(list(self._live)))

    def _collect(self) -> None:
        for sequence in self.scheduler.pop_finished():
            del self._live[sequence.sequence_id]
            assert sequence.finish_reason is not None
            self.report.outcomes[sequence.finish_reason] += 1
            answer = self.model.alone(
                sequence.request, seed=sequence.seed, max_model_len=self.scheduler.max_sequence_tokens
            )
            got = sequence.output_token_ids
            whole = sequence.finish_reason is not FinishReason.ABORT
            self.report.wrong += got != (answer.token_ids if whole else answer.token_ids[: len(got)])

    def _sample(self) -> None:
        self.scheduler.check_integrity()
        stats = self.scheduler.stats()
        self.report.preemptions = stats.preemptions
        self.report.largest_bookkeeping = max(self.report.largest_bookkeeping, num_entries(self.scheduler))
        running = [sequence for sequence in self._live.values() if sequence.block_ids]
        if running:
            self.report.waste.append(stats.waste)
            used = sum(sequence.num_computed_tokens for sequence in running)
            self.report.contiguous_waste.append(1 - used / (len(running) * self.scheduler.config.max_model_len))


def num_entries(owner: object, seen: set[int] | None = None) -> int:
    """Entries of all containers of an object and of ours that it refers to: what must not grow with time."""
    seen = set() if seen is None else seen
    seen.add(id(owner))
    total = 0
    for value in getattr(owner, "__dict__", {}).values():
        if isinstance(value, dict | list | set):
            total += len(value)
        elif type(value).__module__.startswith("octavo_server") and id(value) not in seen:
            total += num_entries(value, seen)
    return total
