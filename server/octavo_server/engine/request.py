"""What a client asks: frozen values, no torch, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from octavo_server.structured_output.params import StructuredOutputsParams


class FinishReason(StrEnum):
    """Why an output ended; STOP and LENGTH are OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop; names, ranges and meanings as in vLLM.

    Any value can be held; `admission.check_request` refuses what is out of range before anything runs.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    """None: as many as the context has room for."""
    min_tokens: int = 0
    logprobs: int | None = None
    """Top log-probabilities to report a token (0: the sampled one alone; None: none)."""
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None
    """The only tokens that may be chosen; None: all."""
    bad_words: tuple[str, ...] = ()
    """Texts that the output may not hold, each also where it begins a word."""
    structured_outputs: StructuredOutputsParams | None = None

    @classmethod
    def from_optional(cls, **values: Any) -> SamplingParams:
        """As the constructor, with None for what shall be the default."""
        return cls(**{name: value for name, value in values.items() if value is not None or name == "max_tokens"})

    @property
    def has_penalty(self) -> bool:
        """Whether what has been said already is less likely to be said again."""
        return bool(self.repetition_penalty != 1.0 or self.presence_penalty or self.frequency_penalty)

    def clone(self) -> SamplingParams:
        """Itself: it never changes."""
        return self


POOLING = SamplingParams(max_tokens=0, detokenize=False)
"""Of a request that pools: nothing is sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One accepted request; `params.n` sequences come of it."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    arrival_s: float
    priority: int = 0
    """Lower runs earlier (vLLM's meaning); other than 0 only with the policy `priority`."""
    pools: bool = False
    """Asks for the hidden state of its last token instead of output tokens; its params are POOLING."""
    grammar: str | None = None
    """What `params.structured_outputs` has been compiled to; see text_params."""
    bad_token_ids: tuple[tuple[int, ...], ...] = ()
    """`params.bad_words` in tokens."""
    shown_special_ids: tuple[int, ...] = ()
    """Special tokens that stand in the text though `skip_special_tokens` hides the others: a parser reads them there."""
    cache_salt: str = ""
    """Isolates the prefix cache: only requests with an equal salt share blocks."""
