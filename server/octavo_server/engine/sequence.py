"""One generated stream of a request, and how far it has come.

Only the Scheduler changes a Sequence; everybody else reads. It is the single record of a stream: what preemption throws
away (blocks, computed tokens) and what it must keep (every known token) live side by side here.

    token_ids           [ prompt ........ | output .. ]
    num_computed_tokens ^----- K/V exist ----^          the next step computes from here to the end
    block_ids           one per `block_size` tokens, at least as far as the computed ones
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

from octavo_server.engine.prefix_cache import canonical_extra
from octavo_server.engine.token_counts import TokenCounts

if TYPE_CHECKING:
    from octavo_server.engine.outputs import BlockId, SequenceId
    from octavo_server.engine.request import FinishReason, Request


class SequenceStatus(Enum):
    """Where a sequence is; WAITING and PREEMPTED ones hold no blocks."""

    WAITING = auto()
    RUNNING = auto()
    PREEMPTED = auto()
    FINISHED = auto()


class GrammarState(Protocol):
    """How far an output has come in the grammar that it must follow."""

    def allowed_tokens(self) -> bytes | None:
        """One bit a token of the vocabulary, lowest bit first; None where the grammar cannot go on."""

    def accept(self, token_id: int) -> bool:
        """Takes the token that was chosen; False where the grammar has no place for it."""

    @property
    def error(self) -> str:
        """Why the grammar cannot go on."""


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """Compared by identity: two sequences with equal tokens are still two streams."""

    sequence_id: SequenceId
    request: Request
    index: int = 0
    """Which of the request's `n` outputs this is, from 0."""
    seed: int = 0
    """Start of this sequence's counter-based random numbers; with the position it decides every draw."""

    grammar: GrammarState | None = None
    """What the output must follow; None: nothing. Tokens are never taken back, so this outlives preemption."""

    token_ids: list[int] = field(init=False)
    """Prompt, then output; only `append` changes it."""
    token_counts: TokenCounts | None = field(init=False)
    """Of both; None where no penalty asks for it."""
    edits_logits: bool = field(init=False)
    """Whether something is asked that changes its logits at every token; `min_tokens` does so at the first ones."""
    num_prompt_tokens: int = field(init=False)
    max_output_tokens: int = 0
    """The request's `max_tokens` or what the context has room for, whichever is less; set when it is added."""

    status: SequenceStatus = SequenceStatus.WAITING
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended the output."""
    is_refused: bool = False
    """Whether it ended with ERROR for what its own request asked."""
    error: str | None = None
    """Why it ended with ERROR, for the client."""

    block_ids: list[BlockId] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_launched_tokens: int = 0
    """Beyond those: tokens of steps that have been launched and not come back."""
    num_unread_tokens: int = 0
    """Tokens of the output that such steps sample: 0 or 1. They are counted, and what they are is not known yet."""
    num_cached_tokens: int = 0
    """Tokens that the prefix cache saved at the first admission; what usage reports."""

    prefix_extra: bytes = field(init=False)
    """What beside its tokens makes a block of this sequence its own; goes into every block's hash."""
    block_hashes: list[bytes] = field(default_factory=list)
    """Hashes of the full blocks so far. Tokens never change, so this outlives preemption."""
    num_published_blocks: int = 0
    """Leading blocks that the prefix cache has been told of."""
    num_reported_prompt_logprobs: int = 0
    """Prompt positions below this have been reported; a recomputation must not report them again."""
    num_preemptions: int = 0

    first_scheduled_s: float | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.token_counts = TokenCounts(self.token_ids) if self.request.params.has_penalty else None
        self.edits_logits = bool(
            self.grammar is not None
            or self.token_counts is not None
            or self.request.params.allowed_token_ids is not None
            or self.request.params.logit_bias
            or self.request.bad_token_ids
        )
        self.prefix_extra = canonical_extra(self.request.cache_salt)

    def append(self, token_id: int) -> None:
        """Takes in a token of the output."""
        self.token_ids.append(token_id)
        if self.token_counts is not None:
            self.token_counts.add(token_id)

    @property
    def arrival_s(self) -> float:
        return self.request.arrival_s

    @property
    def num_tokens(self) -> int:
        """Known tokens, prompt and output."""
        return len(self.token_ids)

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_sampled_tokens(self) -> int:
        """Output tokens, those included that have not come to the host."""
        return len(self.token_ids) + self.num_unread_tokens - self.num_prompt_tokens

    @property
    def is_finished(self) -> bool:
        return self.status is SequenceStatus.FINISHED

    @property
    def reads_prefix_cache(self) -> bool:
        """False where the prompt's own logits are asked for: those exist only if the prompt is computed."""
        return self.request.params.prompt_logprobs is None
