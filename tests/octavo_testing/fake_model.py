"""A model without arithmetic that a wrong scheduler cannot fool.

What it stores in a slot is a digest of all tokens up to that position, made from the digest in the *previous* slot of
the block table; the next token is a function of the last digest and the sequence's seed. So a lost, repeated or
misplaced token, a wrong block, an unfounded prefix hit or a block reused too early changes every later token, and
`alone` says what they should have been.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from octavo_server.engine.outputs import (
    PromptLogprob,
    RunnerOutput,
    SampledToken,
    ScheduledSequence,
    SchedulerOutput,
    SequenceId,
    TokenLogprob,
)
from octavo_server.engine.request import FinishReason, Request
from octavo_server.engine.sequence import Sequence

_MASK = (1 << 64) - 1
FAKE_STATE_SIZE = 8
"""Numbers of a hidden state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a request alone in the world generates."""

    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: int | None = None


class FakeModel:
    """The function from tokens to the next token."""

    def __init__(self, *, vocabulary: int, eos_token_id: int) -> None:
        self.vocabulary = vocabulary
        self.eos_token_id = eos_token_id

    def root(self, salt: str) -> int:
        """The digest of no tokens. With the salt in it, sharing across salts is seen."""
        return int.from_bytes(salt.encode()[:8], "little") if salt else 1

    def digest(self, previous: int, token: int) -> int:
        return ((previous ^ (previous >> 29)) * 0x9E3779B97F4A7C15 + token * 0xBF58476D1CE4E5B9 + 1) & _MASK

    def next_token(self, digest: int, seed: int) -> int:
        return (((digest ^ seed) * 0x94D049BB133111EB & _MASK) >> 40) % self.vocabulary

    def state_alone(self, request: Request) -> bytes:
        """What a request that pools, alone in the world, is given."""
        return self.hidden_state(self._after(request))

    def _after(self, request: Request) -> int:
        """The digest of the whole prompt."""
        state = self.root(request.cache_salt)
        for token in request.prompt_token_ids:
            state = self.digest(state, token)
        return state

    def hidden_state(self, digest: int) -> bytes:
        """Eight small numbers that say which tokens stood before."""
        return struct.pack(f"<{FAKE_STATE_SIZE}f", *digest.to_bytes(8, "little"))

    def alone(self, request: Request, *, seed: int, max_model_len: int) -> Answer:
        """The stop rules once more, as plainly as they can be written."""
        params, prompt = request.params, request.prompt_token_ids
        if request.pools:
            return Answer(token_ids=[], finish_reason=FinishReason.STOP)
        state = self._after(request)
        room = max_model_len - len(prompt)
        most = room if params.max_tokens is None else min(room, params.max_tokens)
        tokens: list[int] = []
        while len(tokens) < most:
            token = self.next_token(state, seed)
            tokens.append(token)
            state = self.digest(state, token)
            if len(tokens) >= params.min_tokens:
                if token == self.eos_token_id and not params.ignore_eos:
                    return Answer(token_ids=tokens, finish_reason=FinishReason.STOP)
                if token in params.stop_token_ids:
                    return Answer(token_ids=tokens, finish_reason=FinishReason.STOP, stop_reason=token)
        return Answer(token_ids=tokens, finish_reason=FinishReason.LENGTH)


@dataclass(frozen=True, slots=True)
class FakeLaunched:
    """A step whose result has been there all along, and is asked for later."""

    output: RunnerOutput

    def result(self) -> RunnerOutput:
        return self.output


class FakeRunner:
    """A ModelRunner over a paged cache of digests.

    `strict` reads the whole context of every row through its block table at every step, O(context); without it each
    row reads the slot before its own, which is enough to poison whatever follows a mistake.
    """

    def __init__(
        self,
        model: FakeModel,
        *,
        num_blocks: int,
        block_size: int,
        strict: bool = False,
        fails: Callable[[Sequence], str | None] = lambda _: None,
    ) -> None:
        self.model = model
        self.block_size = block_size
        self.strict = strict
        self.fails = fails
        self._slots = [0] * (num_blocks * block_size)
        self._sampled: dict[SequenceId, int] = {}
        """By the last step that was launched."""

    def _tokens(self, sequence: Sequence) -> list[int]:
        if not sequence.num_unread_tokens:
            return sequence.token_ids
        return [*sequence.token_ids, self._sampled.get(sequence.sequence_id, -1)]

    def launch(self, output: SchedulerOutput) -> FakeLaunched:
        """Computes at once, as a device does in its own time, and keeps the tokens that the host does not know yet."""
        result = self.execute(output)
        self._sampled = {sequence_id: token.token_id for sequence_id, token in result.sampled.items()}
        return FakeLaunched(result)

    def execute(self, output: SchedulerOutput) -> RunnerOutput:
        """All rows write before any is checked, as a layer stores K/V before it attends."""
        lasts = [self._compute(item) for item in output.scheduled]
        sampled: dict[SequenceId, SampledToken] = {}
        logprobs: dict[SequenceId, tuple[PromptLogprob, ...]] = {}
        states: dict[SequenceId, bytes] = {}
        failed: dict[SequenceId, str] = {}
        for item, last in zip(output.scheduled, lasts, strict=True):
            sequence = item.sequence
            if self.strict:
                self._check_context(item)
            message = self.fails(sequence)
            if message is not None:
                failed[sequence.sequence_id] = message
                continue
            if item.samples:
                sampled[sequence.sequence_id] = SampledToken(token_id=self.model.next_token(last, sequence.seed))
            if item.pools:
                states[sequence.sequence_id] = self.model.hidden_state(last)
            if sequence.request.params.prompt_logprobs is not None:
                logprobs[sequence.sequence_id] = self._prompt_logprobs(item)
        return RunnerOutput(sampled=sampled, prompt_logprobs=logprobs, hidden_states=states, failed=failed)

    def _compute(self, item: ScheduledSequence) -> int:
        tokens, blocks, size = self._tokens(item.sequence), item.sequence.block_ids, self.block_size
        start, digest, slots = item.start, self.model.digest, self._slots
        assert item.num_tokens > 0
        assert start + item.num_tokens <= len(tokens)
        state = (
            slots[blocks[(start - 1) // size] * size + (start - 1) % size]
            if start
            else self.model.root(item.sequence.request.cache_salt)
        )
        for position in range(start, start + item.num_tokens):
            block_id = blocks[position // size]
            assert block_id != 0, "the null block in a block table"
            state = digest(state, tokens[position])
            slots[block_id * size + position % size] = state
        return state

    def _check_context(self, item: ScheduledSequence) -> None:
        sequence, size, tokens = item.sequence, self.block_size, self._tokens(item.sequence)
        state = self.model.root(sequence.request.cache_salt)
        for position in range(item.start + item.num_tokens):
            state = self.model.digest(state, tokens[position])
            found = self._slots[sequence.block_ids[position // size] * size + position % size]
            assert found == state, f"sequence {sequence.sequence_id}: foreign K/V at position {position}"

    def _prompt_logprobs(self, item: ScheduledSequence) -> tuple[PromptLogprob, ...]:
        sequence, size = item.sequence, self.block_size
        first, end = item.start + 1, min(item.start + item.num_tokens + 1, sequence.num_prompt_tokens)
        return tuple(
            PromptLogprob(
                position=position,
                logprob=TokenLogprob(
                    token_id=sequence.token_ids[position],
                    logprob=-float(
                        self._slots[sequence.block_ids[(position - 1) // size] * size + (position - 1) % size] % 997
                    ),
                    rank=1,
                ),
            )
            for position in range(first, end)
        )
