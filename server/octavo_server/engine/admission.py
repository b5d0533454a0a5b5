"""What a request must satisfy before the engine takes it; pure, and called where the caller can still be told.

The ranges are the contract's; the HTTP side reads them from here, so that online and offline refuse alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo_server.errors import InvalidRequestError

if TYPE_CHECKING:
    from octavo_server.engine.request import Request, SamplingParams

INT64 = 2**63 - 1

# Field -> lowest and highest value.
RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0, 2),
}
INTEGER_RANGES: dict[str, tuple[int, int]] = {
    "n": (1, 128),
    "top_k": (-1, 2**31 - 1),
    "seed": (-INT64 - 1, INT64),
    "max_tokens": (0, INT64),
    "min_tokens": (0, INT64),
    "logprobs": (0, 20),
    "prompt_logprobs": (0, 20),
}
# A zero would divide by nothing, or keep nothing.
ABOVE_ZERO = frozenset({"top_p", "repetition_penalty"})
MAX_STOP_STRINGS, MAX_STOP_CHARS = 16, 256
LOGIT_BIAS_LIMIT = 100.0
MAX_BAD_WORDS = 1024
MAX_ALLOWED_TOKEN_IDS = 2**18


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the loaded model and its cache allow."""

    max_sequence_tokens: int
    """Prompt and output together: --max-model-len, or the KV cache where that is smaller."""
    vocab_size: int
    ranks_by_priority: bool = False
    """Whether --scheduling-policy is priority."""


def check_request(request: Request, limits: Limits) -> None:
    """Whether the request can run to its end.

    Raises:
        InvalidRequestError: names the field, both numbers and the remedy.
    """
    check_params(request.params)
    assert not request.pools or (request.params.max_tokens, request.params.n) == (0, 1), (
        "a request that pools is POOLING"
    )
    check_token_ids(request.params, limits, prompt=request.prompt_token_ids)
    params, num_prompt, limit = request.params, len(request.prompt_token_ids), limits.max_sequence_tokens
    if request.priority and not limits.ranks_by_priority:
        raise InvalidRequestError(
            f"priority is {request.priority}, but this server does not rank by it; leave it out, or start the server "
            f"with --scheduling-policy priority",
            param="priority",
        )
    if num_prompt == 0:
        raise InvalidRequestError("the prompt has 0 tokens; send at least one", param="prompt")
    if num_prompt + (params.max_tokens != 0) > limit:
        raise InvalidRequestError(
            f"the prompt has {num_prompt:,} tokens, the context holds {limit:,}"
            f"{' with the output' if params.max_tokens != 0 else ''}; shorten the prompt or raise --max-model-len",
            param="prompt",
        )
    if params.max_tokens is not None and num_prompt + params.max_tokens > limit:
        raise InvalidRequestError(
            f"the prompt has {num_prompt:,} tokens and max_tokens is {params.max_tokens:,}, together "
            f"{num_prompt + params.max_tokens:,}; the context holds {limit:,}: lower max_tokens to "
            f"{limit - num_prompt:,} or shorten the prompt",
            param="max_tokens",
        )
    room = limit - num_prompt if params.max_tokens is None else params.max_tokens
    if params.min_tokens > room:
        raise InvalidRequestError(
            f"min_tokens is {params.min_tokens:,}, more than the {room:,} tokens that the output may have; lower it",
            param="min_tokens",
        )


def check_params(params: SamplingParams) -> None:
    """Whether each value is in its range.

    Raises:
        InvalidRequestError: names the field.
    """
    for name, (low, high) in {**RANGES, **INTEGER_RANGES}.items():
        value = getattr(params, name)
        if value is None:
            continue
        if not low <= value <= high or (name in ABOVE_ZERO and value == 0):
            least = f"above {low:g}" if name in ABOVE_ZERO else f"at least {low:g}"
            raise InvalidRequestError(f"{name} is {value}, it must be {least} and at most {high:g}", param=name)
    if len(params.stop) > MAX_STOP_STRINGS or not all(1 <= len(item) <= MAX_STOP_CHARS for item in params.stop):
        raise InvalidRequestError(
            f"stop takes at most {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_CHARS} characters", param="stop"
        )
    if len(params.bad_words) > MAX_BAD_WORDS or not all(1 <= len(item) <= MAX_STOP_CHARS for item in params.bad_words):
        raise InvalidRequestError(
            f"bad_words takes at most {MAX_BAD_WORDS:,} strings of 1 to {MAX_STOP_CHARS} characters", param="bad_words"
        )
    if params.allowed_token_ids is not None and not 1 <= len(params.allowed_token_ids) <= MAX_ALLOWED_TOKEN_IDS:
        raise InvalidRequestError(
            f"allowed_token_ids has {len(params.allowed_token_ids):,} ids, it must have 1 to {MAX_ALLOWED_TOKEN_IDS:,}",
            param="allowed_token_ids",
        )
    if not all(abs(value) <= LOGIT_BIAS_LIMIT for value in params.logit_bias.values()):
        raise InvalidRequestError(
            f"logit_bias takes values from -{LOGIT_BIAS_LIMIT:g} to {LOGIT_BIAS_LIMIT:g}", param="logit_bias"
        )


def check_token_ids(params: SamplingParams, limits: Limits, *, prompt: tuple[int, ...] = ()) -> None:
    """Whether every token that is named is in the vocabulary.

    Raises:
        InvalidRequestError: names the field.
    """
    for name, ids in (
        ("prompt", prompt),
        ("stop_token_ids", params.stop_token_ids),
        ("logit_bias", tuple(params.logit_bias)),
        ("allowed_token_ids", params.allowed_token_ids or ()),
    ):
        if not ids or (min(ids) >= 0 and max(ids) < limits.vocab_size):
            continue
        wrong = next(item for item in ids if not 0 <= item < limits.vocab_size)
        raise InvalidRequestError(
            f"{name} holds token id {wrong}, the vocabulary has {limits.vocab_size:,} (0 to {limits.vocab_size - 1:,})",
            param=name,
        )
