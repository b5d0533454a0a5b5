"""What `LLM.generate` and `LLM.chat` give, with vLLM's names and shapes, and how a step's deltas become it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from octavo_server.engine.request import FinishReason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo_server.engine.engine import OutputDelta
    from octavo_server.engine.outputs import SampledToken, TokenLogprob
    from octavo_server.engine.request import Request
    from octavo_server.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprob:
    """A token's log-probability, its rank (1 is the likeliest) and its text."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(slots=True, kw_only=True)
class CompletionOutput:
    """One of a request's outputs."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    """Sum over the tokens; None unless log-probabilities were asked for."""
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def finished(self) -> bool:
        """A method here and a field of the request, as scripts know it."""
        return self.finish_reason is not None


@dataclass(slots=True, kw_only=True)
class RequestMetrics:
    """Times of a request, in seconds of `time.monotonic`."""

    arrival_time: float
    first_token_time: float | None = None
    finished_time: float | None = None


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """A request and its outputs."""

    request_id: str
    prompt: str | None
    """None where token ids were given."""
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    metrics: RequestMetrics
    num_cached_tokens: int = 0


def empty_output(request: Request, text: str | None) -> RequestOutput:
    """Of a request that has not begun."""
    params = request.params
    logprobs = params.logprobs is not None
    return RequestOutput(
        request_id=request.request_id,
        prompt=text,
        prompt_token_ids=list(request.prompt_token_ids),
        prompt_logprobs=None if params.prompt_logprobs is None else [None],
        outputs=[CompletionOutput(index=index, logprobs=[] if logprobs else None) for index in range(params.n)],
        metrics=RequestMetrics(arrival_time=request.arrival_s),
    )


def take_delta(delta: OutputDelta, result: RequestOutput, tokenizer: Tokenizer) -> None:
    """Adds what a step gave one output of `result`."""
    output = result.outputs[delta.index]
    output.text += delta.text
    output.token_ids += [token.token_id for token in delta.tokens]
    if output.logprobs is not None:
        for token in delta.tokens:
            _take_logprob(token, output, output.logprobs, tokenizer)
    if result.prompt_logprobs is not None and delta.index == 0:
        result.prompt_logprobs += [_entry(item.logprob, item.top_logprobs, tokenizer) for item in delta.prompt_logprobs]
    if delta.tokens and result.metrics.first_token_time is None:
        result.metrics.first_token_time = time.monotonic()
    if delta.finish_reason is not None:
        _finish(delta, output, result)


def _finish(delta: OutputDelta, output: CompletionOutput, result: RequestOutput) -> None:
    assert delta.finish_reason is not None
    output.finish_reason, output.stop_reason = delta.finish_reason.value, delta.stop_reason
    if delta.finish_reason is FinishReason.ERROR:
        output.stop_reason = delta.error
    if delta.index == 0:
        result.num_cached_tokens = delta.num_cached_tokens
    result.finished = all(item.finished() for item in result.outputs)
    if result.finished:
        result.metrics.finished_time = time.monotonic()


def _take_logprob(
    token: SampledToken, output: CompletionOutput, logprobs: list[dict[int, Logprob]], tokenizer: Tokenizer
) -> None:
    assert token.logprob is not None
    logprobs.append(_entry(token.logprob, token.top_logprobs, tokenizer))
    output.cumulative_logprob = (output.cumulative_logprob or 0.0) + token.logprob.logprob


def _entry(chosen: TokenLogprob, tops: Sequence[TokenLogprob], tokenizer: Tokenizer) -> dict[int, Logprob]:
    return {
        item.token_id: Logprob(logprob=item.logprob, rank=item.rank, decoded_token=tokenizer.token_text(item.token_id))
        for item in (chosen, *tops)
    }
