"""Random lives of an engine in tiny pools: after every step all books agree, and every output is the fake model's own.

The fake model's cache holds a digest of the whole prefix in every slot and checks the whole context of every row, so
a foreign block, a repeated, lost or misplaced token, or a hit across salts cannot go unseen.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.outputs import PromptLogprob, SequenceId
from octavo_server.engine.request import POOLING, FinishReason, Request, SamplingParams
from octavo_server.engine.scheduler import Scheduler, SchedulerConfig
from octavo_server.engine.sequence import Sequence
from octavo_server.engine.waiting_queue import SchedulingPolicy
from octavo_testing.fake_model import FakeModel, FakeRunner

MODEL = FakeModel(vocabulary=20, eos_token_id=0)
CONTEXT = 48
LIMIT_STEPS = 5_000

configs = st.fixed_dictionaries(
    {
        "blocks": st.integers(2, 14),
        "block_size": st.sampled_from([1, 2, 3, 4]),
        "budget": st.integers(1, 24),
        "seqs": st.integers(1, 6),
        "share": st.sampled_from([0, 1, 3, 8]),
        "watermark": st.sampled_from([0.0, 0.01, 0.3]),
        "policy": st.sampled_from(SchedulingPolicy),
        "prefix_caching": st.booleans(),
    }
)

sampling = st.builds(
    SamplingParams,
    max_tokens=st.one_of(st.none(), st.integers(0, 24)),
    min_tokens=st.integers(0, 6),
    ignore_eos=st.booleans(),
    stop_token_ids=st.sampled_from([(), (5,), (6, 7)]),
    prompt_logprobs=st.sampled_from([None, None, None, 0]),
)

# Few different beginnings, so that prefixes are shared, block-aligned and not
prompts = st.tuples(st.integers(0, 2), st.integers(0, 20), st.lists(st.integers(1, 19), max_size=4)).map(
    lambda parts: tuple([3 + parts[0]] * parts[1] + parts[2]) or (1,)
)


class SchedulerLife(RuleBasedStateMachine):
    @initialize(config=configs)
    def start(self, config: dict[str, object]) -> None:
        blocks, block_size = int(config["blocks"]), int(config["block_size"])  # type: ignore[call-overload]
        kv = KVCacheManager(
            num_blocks=blocks + 1, block_size=block_size, enable_prefix_caching=bool(config["prefix_caching"])
        )
        self.scheduler = Scheduler(
            SchedulerConfig(
                max_num_batched_tokens=config["budget"],  # type: ignore[arg-type]
                max_num_seqs=config["seqs"],  # type: ignore[arg-type]
                max_model_len=CONTEXT,
                policy=config["policy"],  # type: ignore[arg-type]
                long_prefill_token_threshold=config["share"],  # type: ignore[arg-type]
                watermark=config["watermark"],  # type: ignore[arg-type]
                eos_token_ids=frozenset({MODEL.eos_token_id}),
            ),
            kv,
        )
        self.failing: set[SequenceId] = set()
        self.runner = FakeRunner(
            MODEL,
            num_blocks=blocks + 1,
            block_size=block_size,
            strict=True,
            fails=lambda sequence: "broken" if sequence.sequence_id in self.failing else None,
        )
        self.now = 0.0
        self.accepted: dict[SequenceId, Sequence] = {}
        self.streamed: dict[SequenceId, list[int]] = {}
        self.logprobs: dict[SequenceId, list[PromptLogprob]] = {}
        self.states: dict[SequenceId, list[bytes]] = {}
        self.ends: Counter[SequenceId] = Counter()
        self.told_ends: Counter[SequenceId] = Counter()
        self.from_outside: dict[SequenceId, FinishReason] = {}

    @rule(
        prompt=prompts,
        params=st.one_of(sampling, sampling, st.just(POOLING)),
        copies=st.integers(1, 3),
        salt=st.sampled_from(["", "", "s"]),
        priority=st.integers(-1, 1),
    )
    def arrives(self, prompt: tuple[int, ...], params: SamplingParams, copies: int, salt: str, priority: int) -> None:
        pools = params is POOLING
        copies = 1 if pools else copies
        room = self.scheduler.max_sequence_tokens if params.max_tokens == 0 else self.scheduler.max_prompt_tokens
        request = Request(
            request_id=str(len(self.accepted)),
            prompt_token_ids=prompt[:room] or (1,),
            params=params,
            pools=pools,
            arrival_s=self.now,
            priority=priority,
            cache_salt=salt,
        )
        for index in range(copies):
            sequence_id = SequenceId(len(self.accepted) + 1)
            sequence = Sequence(sequence_id=sequence_id, request=request, index=index, seed=index)
            self.scheduler.add(sequence)
            self.accepted[sequence_id] = sequence
            self.streamed[sequence_id] = []
            self.logprobs[sequence_id] = []
            self.states[sequence_id] = []

    @rule()
    def step(self) -> None:
        self.now += 1
        output = self.scheduler.schedule(self.now)
        assert bool(output.scheduled) == self.scheduler.has_work, "a step stands still"
        assert output.num_tokens <= self.scheduler.config.max_num_batched_tokens
        self.take(self.scheduler.update(output, self.runner.execute(output)))

    @rule()
    def step_that_raises(self) -> None:
        """Its K/V may be written, but nobody hears of it; the next step does it again."""
        self.runner.execute(self.scheduler.schedule(self.now))

    @rule(data=st.data())
    @precondition(lambda self: self.scheduler.has_work)
    def ends_from_outside_during_a_step(self, data: st.DataObject) -> None:
        output = self.scheduler.schedule(self.now)
        result = self.runner.execute(output)
        self.end(data)
        self.take(self.scheduler.update(output, result))

    @rule(data=st.data())
    @precondition(lambda self: self.scheduler.has_work)
    def ends_from_outside(self, data: st.DataObject) -> None:
        self.end(data)

    @rule(data=st.data())
    @precondition(lambda self: self.scheduler.has_work)
    def row_will_fail(self, data: st.DataObject) -> None:
        self.failing.add(data.draw(st.sampled_from(self.live())))

    @invariant()
    def books_agree(self) -> None:
        self.scheduler.check_integrity()
        self.collect()
        stats = self.scheduler.stats()
        assert 0 <= stats.kv_usage <= 1
        assert stats.waste <= 1
        assert stats.pressure >= 0
        assert stats.running + stats.waiting == len(self.live())
        if not self.scheduler.has_work:
            assert (stats.kv_usage, stats.pressure, stats.waste) == (0, 0, 0)

    def teardown(self) -> None:
        """Whatever happened, all that is left ends by itself."""
        if not hasattr(self, "scheduler"):
            return
        steps = 0
        while self.scheduler.has_work:
            self.step()
            steps += 1
            assert steps < LIMIT_STEPS, "no progress"
        self.collect()
        self.scheduler.check_integrity()
        assert self.scheduler.kv.num_free_blocks == self.scheduler.kv.num_usable_blocks
        assert set(self.ends) == set(self.accepted)
        for sequence in self.accepted.values():
            self.check_output(sequence)

    def live(self) -> list[SequenceId]:
        return [sequence_id for sequence_id in self.accepted if sequence_id not in self.ends]

    def end(self, data: st.DataObject) -> None:
        sequence_id = data.draw(st.sampled_from(self.live()))
        reason = data.draw(st.sampled_from([FinishReason.ABORT, FinishReason.STOP]))
        assert self.scheduler.finish(sequence_id, reason, "END" if reason is FinishReason.STOP else None)
        assert not self.scheduler.abort(sequence_id)
        self.from_outside[sequence_id] = reason
        self.collect()

    def take(self, results: list) -> None:  # type: ignore[type-arg]
        for result in results:
            sequence_id = result.sequence.sequence_id
            assert not self.told_ends[sequence_id], "a word after the last"
            self.streamed[sequence_id] += [token.token_id for token in result.tokens]
            self.logprobs[sequence_id] += result.prompt_logprobs
            self.states[sequence_id] += [] if result.hidden_state is None else [result.hidden_state]
            self.told_ends[sequence_id] += result.finish_reason is not None

    def collect(self) -> None:
        for sequence in self.scheduler.pop_finished():
            self.ends[sequence.sequence_id] += 1
            assert self.ends[sequence.sequence_id] == 1, "ended twice"

    def check_output(self, sequence: Sequence) -> None:
        sequence_id, request = sequence.sequence_id, sequence.request
        answer = MODEL.alone(request, seed=sequence.seed, max_model_len=self.scheduler.max_sequence_tokens)
        streamed = self.streamed[sequence_id]
        assert streamed == sequence.output_token_ids
        assert streamed == answer.token_ids[: len(streamed)]
        if sequence_id in self.from_outside:
            assert sequence.finish_reason is self.from_outside[sequence_id]
            assert not self.told_ends[sequence_id]
        elif sequence.finish_reason is FinishReason.ERROR:
            assert sequence_id in self.failing
        else:
            assert streamed == answer.token_ids
            assert self.states[sequence_id] == ([MODEL.state_alone(request)] if request.pools else [])
            assert (sequence.finish_reason, sequence.stop_reason) == (answer.finish_reason, answer.stop_reason)
            if request.params.prompt_logprobs is not None:
                positions = [item.position for item in self.logprobs[sequence_id]]
                assert positions == list(range(1, len(request.prompt_token_ids)))


SchedulerLife.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSchedulerLife = SchedulerLife.TestCase
