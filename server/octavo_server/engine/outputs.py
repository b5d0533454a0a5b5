"""Values that the stages of a step hand to each other.

    Scheduler.schedule -> SchedulerOutput -> ModelRunner.execute -> RunnerOutput -> Scheduler.update

`SchedulerOutput` names sequences and token ranges; it never holds a tensor. What a step has one of for each sequence is a
NamedTuple: made in a third of the time of a frozen dataclass, hundreds of times a step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, NewType, Protocol

from octavo_server.structured_output.params import STRUCTURED_OUTPUTS

if TYPE_CHECKING:
    from octavo_server.engine.request import FinishReason
    from octavo_server.engine.sequence import Sequence

SequenceId = NewType("SequenceId", int)
BlockId = NewType("BlockId", int)

GRAMMAR_ENDED = f"{STRUCTURED_OUTPUTS}: "
"""Before the reason why a grammar cannot go on."""
NOTHING_LEFT = "structured_outputs, allowed_token_ids, bad_words and min_tokens together leave no token to choose; relax one of them"


class ScheduledSequence(NamedTuple):
    """Compute tokens [start, start + num_tokens) of `sequence` in this step."""

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool
    """True where the range ends with the last known token, so that a next token is sampled."""
    pools: bool = False
    """True where the range ends with the last token of a request that asks for its hidden state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOutput:
    """One step's decision."""

    scheduled: tuple[ScheduledSequence, ...]
    preempted: tuple[SequenceId, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens that this step computes."""
        return sum(item.num_tokens for item in self.scheduled)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """One token's log-probability and its rank (1 is the most likely)."""

    token_id: int
    logprob: float
    rank: int


class SampledToken(NamedTuple):
    """What a step chose for one sequence."""

    token_id: int
    logprob: TokenLogprob | None = None
    """Of the sampled token; None unless asked."""
    top_logprobs: tuple[TokenLogprob, ...] = ()
    """The most likely tokens, sorted from the likeliest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLogprob:
    """Log-probability of prompt token `position` given those before it."""

    position: int
    logprob: TokenLogprob
    top_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOutput:
    """What a forward pass and sampling gave."""

    sampled: dict[SequenceId, SampledToken]
    prompt_logprobs: dict[SequenceId, tuple[PromptLogprob, ...]] = field(default_factory=dict)
    hidden_states: dict[SequenceId, bytes] = field(default_factory=dict)
    """Of sequences that pool: the last token's, after the final norm, float32 little-endian."""
    refused: dict[SequenceId, str] = field(default_factory=dict)
    """Sequences whose own request leaves no token to choose, with a message for the client; they end, the others go on."""
    failed: dict[SequenceId, str] = field(default_factory=dict)
    """Sequences whose row alone failed (a non-finite logit), with a message; they end, the others go on."""


class SequenceOutput(NamedTuple):
    """What a step gave one sequence; `stop_reason` and `error` stand in the sequence itself."""

    sequence: Sequence
    tokens: tuple[SampledToken, ...] = ()
    prompt_logprobs: tuple[PromptLogprob, ...] = ()
    """Those not reported before, in order."""
    hidden_state: bytes | None = None
    """Of a sequence that pools, when it ends."""
    finish_reason: FinishReason | None = None
    """None while the sequence goes on."""


class Launched(Protocol):
    """A step that is under way."""

    def result(self) -> RunnerOutput:
        """Waits for it. Raises only when the whole step failed."""


class ModelRunner(Protocol):
    """Owner of all tensors."""

    def launch(self, output: SchedulerOutput) -> Launched:
        """Starts a step of at least one token, and waits for nothing.

        A token that a sequence counts and does not know yet is the one that the step before has sampled for it. Only
        asked for where steps overlap. Raises only when the whole step failed.
        """

    def execute(self, output: SchedulerOutput) -> RunnerOutput:
        """Runs one step. Raises only when the whole step failed."""
