"""Steps that overlap give what steps one after another give: tokens, log-probabilities, finish reasons, one end each."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_server.engine.engine import Engine, OutputDelta, Vocabulary
from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.outputs import RunnerOutput, ScheduledSequence, SchedulerOutput
from octavo_server.engine.request import POOLING, FinishReason, Request, SamplingParams
from octavo_server.engine.scheduler import Scheduler, SchedulerConfig
from octavo_server.models.decoder import Decoder
from octavo_server.models.loader import LoadedModel, load_model
from octavo_server.structured_output.compiler import GrammarCompiler
from octavo_testing.checkpoints import ODD, a_checkpoint, prompt_tokens
from octavo_testing.engine_runs import EngineRuns
from octavo_testing.fake_model import FakeLaunched, FakeModel, FakeRunner
from octavo_testing.op_tape import DeviceLikeBackend, TapeRecorder

MODEL = FakeModel(vocabulary=20, eos_token_id=0)
CONTEXT = 40


class AGrammar:
    """Takes so many tokens, and no one after them but the end."""

    error = "it has no place for this"

    def __init__(self) -> None:
        self.num_taken = 0

    def allowed_tokens(self) -> bytes | None:
        return bytes([255] * 3)

    def accept(self, token_id: int) -> bool:
        self.num_taken += 1
        return self.num_taken <= 4 or token_id == MODEL.eos_token_id


class Grammars:
    def start(self, _grammar: str) -> AGrammar:
        return AGrammar()


class Tokens:
    def token_bytes(self, token_id: int) -> bytes:
        return bytes([97 + token_id])

    def is_special(self, _token_id: int) -> bool:
        return False


@dataclass
class Late:
    """A step that may turn out to have failed once it is asked for."""

    output: RunnerOutput
    fails: bool

    def result(self) -> RunnerOutput:
        if self.fails:
            raise RuntimeError("the device says so late")
        return self.output


class Runner(FakeRunner):
    """Some launches raise, at once or late; a grammar must have all tokens when its mask is made."""

    def __init__(self, blocks: int, fails_at: frozenset[int]) -> None:
        super().__init__(MODEL, num_blocks=blocks + 1, block_size=2, strict=True)
        self.num_launches = 0
        self.most_unread = 0
        self.num_too_early = 0
        """Rows whose token was chosen before the last one was known, though it needs that."""
        self._fails_at = fails_at

    def launch(self, output: SchedulerOutput) -> Any:
        self.num_launches += 1
        if self.num_launches in self._fails_at and self.num_launches % 2:
            raise RuntimeError("this launch was to fail")
        launched = super().launch(output)
        assert isinstance(launched, FakeLaunched)
        return Late(launched.output, fails=self.num_launches in self._fails_at)

    def _compute(self, item: ScheduledSequence) -> int:
        sequence = item.sequence
        self.most_unread = max(self.most_unread, sequence.num_unread_tokens)
        needs_all = sequence.grammar is not None or sequence.token_counts is not None or sequence.request.bad_token_ids
        self.num_too_early += bool(needs_all and sequence.num_unread_tokens)
        return super()._compute(item)


@dataclass
class Told:
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[tuple[int, float]] = field(default_factory=list)
    state: bytes | None = None
    ends: list[tuple[FinishReason, str | int | None]] = field(default_factory=list)


@dataclass(frozen=True)
class Arrival:
    step: int
    request: Request
    aborted_at: int | None


def an_engine(
    overlaps: bool, config: dict[str, int], fails_at: frozenset[int] = frozenset(), **more: Any
) -> tuple[Engine, Runner]:
    runner = Runner(config["blocks"], fails_at)
    kv = KVCacheManager(num_blocks=config["blocks"] + 1, block_size=2)
    limits = SchedulerConfig(
        max_num_batched_tokens=config["budget"],
        max_num_seqs=config["seqs"],
        max_model_len=CONTEXT,
        eos_token_ids=frozenset({MODEL.eos_token_id}),
        overlaps=overlaps,
    )
    vocabulary = Vocabulary(tokens=Tokens(), size=MODEL.vocabulary, grammars=cast("GrammarCompiler", Grammars()))
    engine = Engine(scheduler=Scheduler(limits, kv), runner=runner, vocabulary=vocabulary, **more)
    return engine, runner


def live(engine: Engine, arrivals: list[Arrival]) -> dict[tuple[str, int], Told]:
    """All that every output was told, in a life of the engine that ends when nothing is left."""
    told: dict[tuple[str, int], Told] = {}
    waiting = list(arrivals)
    step = 0
    while waiting or engine.has_work:
        step += 1
        assert step < 2000, "no progress"
        for arrival in [item for item in waiting if item.step <= step]:
            waiting.remove(arrival)
            engine.add_request(arrival.request)
            for index in range(arrival.request.params.n):
                told[arrival.request.request_id, index] = Told()
        for arrival in arrivals:
            if arrival.aborted_at == step:
                engine.abort(arrival.request.request_id)
        if engine.has_work:
            for delta in engine.step():
                take(told[delta.request_id, delta.index], delta)
        engine._scheduler.check_integrity()
    assert engine._scheduler.kv.num_used_blocks == 0
    return told


def take(told: Told, delta: OutputDelta) -> None:
    assert not told.ends, "a word after the last"
    told.tokens += [token.token_id for token in delta.tokens]
    told.text += delta.text
    told.logprobs += [(item.position, item.logprob.logprob) for item in delta.prompt_logprobs]
    told.state = delta.hidden_state or told.state
    if delta.finish_reason is not None:
        told.ends.append((delta.finish_reason, delta.stop_reason))


params = st.builds(
    SamplingParams,
    n=st.sampled_from([1, 1, 2]),
    seed=st.integers(0, 5),
    max_tokens=st.one_of(st.none(), st.integers(0, 12)),
    min_tokens=st.integers(0, 4),
    ignore_eos=st.booleans(),
    stop_token_ids=st.sampled_from([(), (5,), (6, 7)]),
    stop=st.sampled_from([(), (), ("b",), ("cd", "e")]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.0, 1.0]),
    prompt_logprobs=st.sampled_from([None, None, None, 0]),
)


@st.composite
def arrival_lists(draw: st.DrawFn) -> list[Arrival]:
    found = []
    for number in range(draw(st.integers(1, 7))):
        pools = draw(st.sampled_from([False, False, False, True]))
        asked = POOLING if pools else draw(params)
        prompt = [3 + draw(st.integers(0, 1))] * draw(st.integers(1, 14)) + draw(
            st.lists(st.integers(1, 19), max_size=2)
        )
        grammar = draw(st.sampled_from([None, None, None, "g"])) if not pools else None
        if asked.max_tokens is not None and asked.min_tokens > asked.max_tokens:
            asked = replace(asked, min_tokens=asked.max_tokens)
        request = Request(
            request_id=str(number),
            prompt_token_ids=tuple(prompt),
            params=asked,
            arrival_s=float(number),
            pools=pools,
            grammar=grammar,
        )
        aborted_at = draw(st.sampled_from([None, None, None, 3, 7]))
        found.append(Arrival(draw(st.integers(1, 8)), request, aborted_at))
    return found


configs = st.fixed_dictionaries(
    {"blocks": st.integers(CONTEXT // 2, 30), "budget": st.integers(2, 20), "seqs": st.integers(1, 5)}
)


@given(arrival_lists(), configs, st.frozensets(st.integers(1, 30), max_size=3))
@settings(max_examples=60, deadline=None)
def test_outputs_are_those_of_steps_one_after_another(
    arrivals: list[Arrival], config: dict[str, int], fails_at: frozenset[int]
) -> None:
    """Few blocks, so that sequences are preempted; stop strings, grammars, aborts, and launches that fail at once or late."""
    in_turn, _ = an_engine(False, config)
    overlapped, runner = an_engine(True, config, fails_at)

    expected, actual = live(in_turn, arrivals), live(overlapped, arrivals)

    assert expected.keys() == actual.keys()
    assert runner.num_too_early == 0
    aborted = {item.request.request_id for item in arrivals if item.aborted_at is not None}
    for name, told in actual.items():
        if name[0] in aborted:
            # How far it came is a matter of time; as far as it came it is the same.
            shorter = min(len(told.tokens), len(expected[name].tokens))
            assert told.tokens[:shorter] == expected[name].tokens[:shorter]
            assert len(told.ends) <= 1
        else:
            assert told == expected[name]
            assert len(told.ends) == 1


def test_steps_overlap_and_one_that_ends_at_its_limit_wastes_nothing() -> None:
    engine, runner = an_engine(True, {"blocks": 30, "budget": 20, "seqs": 4})
    request = Request(
        request_id="0",
        prompt_token_ids=(3, 4),
        params=SamplingParams(max_tokens=6, ignore_eos=True, detokenize=False),
        arrival_s=0.0,
    )

    (told,) = live(engine, [Arrival(1, request, None)]).values()

    assert runner.most_unread == 1
    assert (len(told.tokens), runner.num_launches) == (6, 6)


def test_times_of_steps_that_overlap_are_counted_once() -> None:
    now = itertools.count()
    engine, _ = an_engine(
        True, {"blocks": 30, "budget": 20, "seqs": 4}, keeps_records=True, clock=lambda: float(next(now))
    )
    request = Request(
        request_id="0", prompt_token_ids=(3, 4), params=SamplingParams(max_tokens=6, ignore_eos=True), arrival_s=0.0
    )

    live(engine, [Arrival(1, request, None)])

    steps = engine.take_records().steps
    assert len(steps) == 6
    assert [step.gap_s for step in steps] == [None] + [0.0] * 5
    assert all(step.seconds > 0 for step in steps)
    assert sum(step.seconds for step in steps) < next(now)


def test_one_that_a_token_ends_is_computed_one_step_more() -> None:
    request = Request(
        request_id="0",
        prompt_token_ids=(3, 4),
        params=SamplingParams(max_tokens=30, stop_token_ids=tuple(range(20)), min_tokens=3),
        arrival_s=0.0,
    )
    engine, runner = an_engine(True, {"blocks": 30, "budget": 20, "seqs": 4})

    (told,) = live(engine, [Arrival(1, request, None)]).values()

    assert (len(told.tokens), runner.num_launches) == (3, 4)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder: Path = tmp_path_factory.mktemp("checkpoint")
    sizes = {**ODD, "num_hidden_layers": 2, "max_position_embeddings": 128}
    model = load_model(a_checkpoint(folder, "LlamaForCausalLM", sizes).path)
    backend = DeviceLikeBackend(8)
    return replace(model, backend=backend, decoder=Decoder(model.config, model.decoder.weights, backend))


@pytest.mark.parametrize("num_blocks", [100, 8], ids=["room", "preempted"])
@pytest.mark.parametrize("is_recorded", [False, True], ids=["eager", "recorded"])
def test_a_real_model_says_the_same(loaded: LoadedModel, num_blocks: int, is_recorded: bool) -> None:
    """To the last bit: its next tokens are gathered on the device, where the host does not know them yet."""
    asked: list[tuple[list[int], dict[str, Any]]] = [
        (prompt_tokens(13 + n, ODD["vocab_size"], seed=n), {"max_tokens": 8 + n, **params})
        for n, params in enumerate(
            [
                {},
                {"temperature": 0.8, "top_p": 0.9, "seed": 3},
                {"temperature": 1.5, "top_k": 20, "seed": 4, "logprobs": 2},
                {"min_tokens": 4, "ignore_eos": False, "logit_bias": {7: 2.0}},
                {"prompt_logprobs": 1, "logprobs": 1, "temperature": 1.0, "seed": 9},
            ]
        )
    ]
    limits: dict[str, Any] = {"num_blocks": num_blocks, "max_num_seqs": 6, "max_num_batched_tokens": 24}
    in_turn = EngineRuns(loaded, **limits)
    overlapped = EngineRuns(loaded, overlaps=True, recorder=TapeRecorder() if is_recorded else None, **limits)

    expected, actual = in_turn.generate_each(asked), overlapped.generate_each(asked)

    assert [(item.tokens, item.prompt_logprobs, item.finish_reason) for item in actual] == [
        (item.tokens, item.prompt_logprobs, item.finish_reason) for item in expected
    ]
    assert (overlapped.engine.snapshot().preemptions > 0) == (num_blocks == 8)
