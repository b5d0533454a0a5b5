"""The real engine and scheduler over a fake model, whose steps a test can hold, count and break."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from octavo_server.engine.build import LoadedEngine
from octavo_server.engine.engine import Engine, Vocabulary
from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.outputs import Launched, ModelRunner, RunnerOutput, SchedulerOutput
from octavo_server.engine.scheduler import Scheduler, SchedulerConfig
from octavo_server.engine.sequence import Sequence
from octavo_server.models.config import GenerationDefaults, VectorSizes
from octavo_server.structured_output.compiler import GrammarCompiler
from octavo_server.tokenizer.tokenizer import Tokenizer
from octavo_testing.fake_model import FAKE_STATE_SIZE, FakeModel, FakeRunner

VOCABULARY = 512
CONTEXT = 512
POISON = 77
"""A prompt of nothing but this token makes a `GatedRunner`'s step raise."""
NOT_FINITE = 78
"""A prompt of one or two tokens that begins with this one has its row fail, as a logit that is no number does."""


class GatedRunner:
    """A fake model whose steps wait for `gate`, and raise for a prompt of POISON. Counts what it was given."""

    def __init__(self, inner: ModelRunner) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.closes_after: int | None = None
        """Steps after which the gate closes by itself; None: never."""
        self.breaks = False
        """Raise at every step."""
        self.num_begun = 0
        """Steps that have come to the gate; `num_steps` have gone through."""
        self.num_steps = 0
        self.fails_at: frozenset[int] = frozenset()
        """Calls, from 1, that raise."""
        self._inner = inner

    def let_through(self, num_steps: int) -> None:
        """Opens the gate for so many steps and no more, however fast they are."""
        self.closes_after = num_steps
        self.gate.set()

    def open(self) -> None:
        """Opens the gate for good."""
        self.closes_after = None
        self.gate.set()

    def launch(self, output: SchedulerOutput) -> Launched:
        return self._inner.launch(output)

    def execute(self, output: SchedulerOutput) -> RunnerOutput:
        self.num_begun += 1
        assert self.gate.wait(timeout=60), "a test left the gate closed"
        self.num_steps += 1
        if self.closes_after is not None:
            self.closes_after -= 1
            if self.closes_after == 0:
                self.gate.clear()
        if self.num_steps in self.fails_at:
            raise RuntimeError("this step was to fail")
        if self.breaks or any(set(item.sequence.request.prompt_token_ids) == {POISON} for item in output.scheduled):
            raise RuntimeError("poisoned")
        return self._inner.execute(output)


class FragileTokens:
    """The tokenizer's table, in which a test may break tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.broken: frozenset[int] = frozenset()
        self._tokenizer = tokenizer

    def token_bytes(self, token_id: int) -> bytes:
        if token_id in self.broken:
            raise RuntimeError("this token was to fail")
        return self._tokenizer.token_bytes(token_id)

    def is_special(self, token_id: int) -> bool:
        return self._tokenizer.is_special(token_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeParts:
    """An engine over a fake model, and what a test may pull at."""

    loaded: LoadedEngine
    runner: GatedRunner
    scheduler: Scheduler
    tokens: FragileTokens

    def break_steps(self, *numbers: int) -> None:
        """Lets those calls of the model raise, counted from now."""
        self.runner.fails_at = frozenset(self.runner.num_steps + number for number in numbers)

    def break_tokens(self, *token_ids: int) -> None:
        """Lets the text of those tokens fail."""
        self.tokens.broken = frozenset(token_ids)

    def break_engine(self) -> None:
        """Lets the next step raise outside of the model, where nobody can be blamed alone."""

        def boom(now: float) -> SchedulerOutput:
            raise RuntimeError("boom")

        self.scheduler.schedule = boom  # type: ignore[method-assign]


def fake_engine(
    tokenizer: Tokenizer,
    *,
    blocks: int = 200,
    seqs: int = 8,
    eos_token_id: int = 1,
    context: int = CONTEXT,
    model_runner: ModelRunner | None = None,
    clock: Callable[[], float] | None = None,
) -> FakeParts:
    """The real engine and scheduler over `FakeModel`, or over `model_runner`."""
    config = SchedulerConfig(
        max_num_batched_tokens=max(256, context // 2),
        max_num_seqs=seqs,
        max_model_len=context,
        eos_token_ids=frozenset({eos_token_id}),
    )
    scheduler = Scheduler(config, KVCacheManager(num_blocks=blocks + 1, block_size=16))
    model = FakeModel(vocabulary=VOCABULARY, eos_token_id=eos_token_id)
    runner = GatedRunner(model_runner or FakeRunner(model, num_blocks=blocks + 1, block_size=16, fails=_failure_of))
    tokens = FragileTokens(tokenizer)
    extra: dict[str, Any] = {"clock": clock} if clock else {}
    engine = Engine(
        scheduler=scheduler,
        runner=runner,
        vocabulary=Vocabulary(
            tokens=tokens,
            size=VOCABULARY,
            grammars=GrammarCompiler(tokenizer, vocab_size=VOCABULARY, eos_token_ids=(eos_token_id,)),
        ),
        keeps_records=True,
        **extra,
    )
    loaded = LoadedEngine(
        engine=engine,
        tokenizer=tokenizer,
        defaults=GenerationDefaults(temperature=0.0),
        vectors=VectorSizes(hidden=FAKE_STATE_SIZE),
        resolved={"kernels": "fake", "num_blocks": blocks + 1},
    )
    return FakeParts(loaded=loaded, runner=runner, scheduler=scheduler, tokens=tokens)


def _failure_of(sequence: Sequence) -> str | None:
    prompt = sequence.request.prompt_token_ids
    return "a logit was no number" if prompt[0] == NOT_FINITE and len(prompt) <= 2 else None
