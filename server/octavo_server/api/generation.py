"""From a parsed request to an answer: submit, then stream or collect. Chat and completions differ in shape alone.

Whatever happens (an error, a client that went away, a full queue), the engine's side is aborted on the way out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from aiohttp import web

from octavo_server.api.endpoint import JSON
from octavo_server.api.error_response import ApiError
from octavo_server.api.sse import EventStream
from octavo_server.api.state import STATE, ServerState
from octavo_server.engine.admission import check_request
from octavo_server.engine.engine import FAILED_MESSAGE
from octavo_server.engine.outputs import GRAMMAR_ENDED
from octavo_server.engine.request import FinishReason, Request, SamplingParams
from octavo_server.engine.text_params import TextParams, resolve_text_params
from octavo_server.errors import InvalidRequestError
from octavo_server.structured_output.params import STRUCTURED_OUTPUTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from octavo_server.api.logprobs import ShownToken
    from octavo_server.api.schemas import GenerationOptions
    from octavo_server.engine.engine import OutputDelta
    from octavo_server.engine.outputs import PromptLogprob, SampledToken
    from octavo_server.engine.request_stream import RequestStream
    from octavo_server.engine.served_model import ServedModel

logger = logging.getLogger(__name__)

IGNORED_HEADER = "X-Octavo-Ignored"
MAX_IGNORED_BYTES = 1024


@dataclass(slots=True, kw_only=True)
class Output:
    """One choice as it has come so far."""

    request: Request
    text: str = ""
    tokens: list[SampledToken] = field(default_factory=list)
    shown: list[ShownToken] = field(default_factory=list)
    """Those that the text shows."""
    prompt_logprobs: list[PromptLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


@dataclass(slots=True, kw_only=True)
class Usage:
    """Counts of one client's request; the same streamed and not."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def add(self, delta: OutputDelta) -> None:
        self.completion_tokens += len(delta.tokens)
        # Of n outputs the first computes the prompt; what the others find is its own work.
        if delta.index == 0 and delta.finish_reason is not None:
            self.cached_tokens += delta.num_cached_tokens

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }


class Shape(Protocol):
    """How an endpoint words its answer; one instance a request, since a stream's offsets are its state."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """The choice of a stream's first chunk, before any token; None where there is none."""

    def deltas(self, index: int, delta: OutputDelta) -> Sequence[dict[str, Any]]:
        """The choices of further chunks; none where they would say nothing."""

    def collect(self, index: int, delta: OutputDelta) -> None:
        """Takes a delta of an answer that is not streamed; `choice` comes last."""

    def choice(self, index: int, output: Output) -> dict[str, Any]:
        """The whole choice of an answer that is not streamed."""

    def chunk_object(self) -> str:
        """`object` of a chunk."""

    def object(self) -> str:
        """`object` of the answer."""

    def shown(self, index: int, delta: OutputDelta) -> list[ShownToken]:
        """The tokens that the text shows since the choice's last delta, where log-probabilities were asked for."""

    def about_prompt(self, request: Request, logprobs: Sequence[PromptLogprob] = ()) -> dict[str, Any]:
        """What stands beside the choices of a whole answer and of a stream's first chunk."""

    def num_reasoning_tokens(self) -> int:
        """Tokens of reasoning in all choices so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One client's request on its way through the engine."""

    state: ServerState
    options: GenerationOptions
    requests: tuple[Request, ...]
    shape: Shape
    response_id: str
    created: int

    @property
    def first_index(self) -> dict[str, int]:
        """Request id → index of its first choice."""
        n = self.options.params.n
        return {request.request_id: number * n for number, request in enumerate(self.requests)}

    @property
    def num_choices(self) -> int:
        return len(self.requests) * self.options.params.n

    @property
    def headers(self) -> dict[str, str]:
        return ignored_headers(self.options.ignored)

    def envelope(self, kind: str, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What stands around choices."""
        return {
            "id": self.response_id,
            "object": kind,
            "created": self.created,
            "model": self.options.model,
            "choices": choices,
        }


async def make_requests(
    state: ServerState,
    options: GenerationOptions,
    prompts: Iterable[Sequence[int]],
    params: SamplingParams,
    shown_special_ids: tuple[int, ...] = (),
) -> tuple[Request, ...]:
    """One engine request a prompt, all checked.

    Raises:
        InvalidRequestError: one of them can never run.
    """
    loaded = state.ready_engine()
    resolved = TextParams()
    if params.structured_outputs is not None or params.bad_words:
        threads = loaded.grammars.threads if params.structured_outputs is not None else None
        try:
            resolved = await asyncio.get_running_loop().run_in_executor(threads, resolve_text_params, params, loaded)
        except InvalidRequestError as error:
            raise _in_the_clients_words(error, options) from error
    requests = tuple(
        Request(
            request_id=state.new_id(),
            prompt_token_ids=tuple(prompt),
            params=params,
            arrival_s=time.monotonic(),
            priority=options.priority,
            cache_salt=options.cache_salt,
            grammar=resolved.grammar,
            bad_token_ids=resolved.bad_token_ids,
            shown_special_ids=shown_special_ids,
        )
        for prompt in prompts
    )
    for request in requests:
        check_request(request, loaded.limits)
    return requests


def _in_the_clients_words(error: InvalidRequestError, options: GenerationOptions) -> InvalidRequestError:
    """A refused format under the name of the field that was sent."""
    if error.param != STRUCTURED_OUTPUTS:
        return error
    return InvalidRequestError(
        str(error).replace(STRUCTURED_OUTPUTS, options.format_field, 1), param=options.format_field
    )


def ignored_headers(ignored: Iterable[str]) -> dict[str, str]:
    """Names the fields that were ignored, within the header's bound."""
    names = ", ".join(name for name in ignored if name.isascii() and name.isprintable())
    if len(names) > MAX_IGNORED_BYTES:
        names = names[: MAX_IGNORED_BYTES - 5].rsplit(", ", 1)[0] + ", ..."
    return {IGNORED_HEADER: names} if names else {}


def num_kept_tokens(options: GenerationOptions, loaded: ServedModel) -> int | None:
    """How many of a prompt's last tokens are kept; None: all.

    Raises:
        InvalidRequestError: more than the context holds are asked for.
    """
    asked, limit = options.truncate_prompt_tokens, loaded.limits.max_sequence_tokens
    if asked is None or asked <= limit:
        output = 1 if options.params.max_tokens is None else options.params.max_tokens
        return max(1, limit - output) if asked == -1 else asked
    raise InvalidRequestError(
        f"truncate_prompt_tokens is {asked:,}, the context holds {limit:,}; lower it, or send -1 for as many as fit",
        param="truncate_prompt_tokens",
    )


async def answer(http: web.Request, generation: Generation) -> web.StreamResponse:
    """Runs the generation and answers, streamed or whole."""
    engine = generation.state.engine
    stream = engine.submit(generation.requests)
    try:
        if generation.options.stream:
            return await _stream(http, generation, stream)
        return await _collect(generation, stream)
    finally:
        engine.abort(stream)


async def _collect(generation: Generation, stream: RequestStream) -> web.Response:
    first_index, shape = generation.first_index, generation.shape
    params = generation.options.params
    outputs = [Output(request=request) for request in generation.requests for _ in range(params.n)]
    usage = _usage(generation)
    while deltas := await stream.read():
        for delta in deltas:
            if delta.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
                raise failure_of(generation.state, delta, generation.options.format_field)
            usage.add(delta)
            index = first_index[delta.request_id] + delta.index
            shape.collect(index, delta)
            output = outputs[index]
            output.text += delta.text
            output.tokens += delta.tokens
            output.shown += shape.shown(index, delta)
            output.prompt_logprobs += delta.prompt_logprobs
            output.finish_reason, output.stop_reason = delta.finish_reason, delta.stop_reason

    def body() -> bytes:
        choices = [shape.choice(index, output) for index, output in enumerate(outputs)]
        usage.reasoning_tokens = shape.num_reasoning_tokens()
        about = shape.about_prompt(outputs[0].request, outputs[0].prompt_logprobs)
        envelope = generation.envelope(shape.object(), choices)
        return msgspec.json.encode({**envelope, "usage": usage.as_json(), **about})

    # Twenty log-probabilities for each of thousands of tokens are megabytes, and streams must not wait for them.
    is_long = params.logprobs is not None or params.prompt_logprobs is not None
    return web.Response(
        body=await asyncio.to_thread(body) if is_long else body(),
        content_type=JSON,
        charset="utf-8",
        headers=generation.headers,
    )


async def _stream(http: web.Request, generation: Generation, stream: RequestStream) -> web.StreamResponse:
    events = EventStream(http, generation.headers)
    await events.open()
    try:
        await _send_events(generation, stream, events)
    except ApiError as error:
        return await events.close(error)
    except ConnectionResetError:
        raise
    except Exception:
        # The status is sent; what is left to say it with is an event.
        logger.exception("a stream failed", extra={"request_id": generation.response_id})
        return await events.close(ApiError(500, FAILED_MESSAGE, code="internal_error"))
    return await events.close()


async def _send_events(generation: Generation, stream: RequestStream, events: EventStream) -> None:
    shape, first_index, usage = generation.shape, generation.first_index, _usage(generation)
    include_usage = generation.options.include_usage

    def chunk(choice: Mapping[str, Any]) -> dict[str, Any]:
        envelope = generation.envelope(shape.chunk_object(), [choice])
        if not include_usage:
            return envelope
        return {**envelope, "usage": usage_json() if generation.options.continuous_usage else None}

    def usage_json() -> dict[str, Any]:
        usage.reasoning_tokens = shape.num_reasoning_tokens()
        return usage.as_json()

    openings = [shape.opening(index) for index in range(generation.num_choices)]
    first = [chunk(choice) for choice in openings if choice is not None]
    if first:
        first[0] |= shape.about_prompt(generation.requests[0])
    await events.send(first)
    while deltas := await stream.read():
        chunks: list[dict[str, Any]] = []
        for delta in deltas:
            if delta.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
                await events.send(chunks)
                raise failure_of(generation.state, delta, generation.options.format_field)
            usage.add(delta)
            choices = shape.deltas(first_index[delta.request_id] + delta.index, delta)
            chunks += [chunk(choice) for choice in choices]
        await events.send(chunks)
    if include_usage:
        await events.send([{**generation.envelope(shape.chunk_object(), []), "usage": usage_json()}])


def says_more(options: GenerationOptions, delta: OutputDelta, shown: Sequence[ShownToken]) -> bool:
    """Whether a chunk is due though it has no text, which is held back, or half a character."""
    has_ids = options.return_token_ids and delta.tokens
    return bool(delta.finish_reason or delta.prompt_logprobs or shown or has_ids)


def _usage(generation: Generation) -> Usage:
    return Usage(prompt_tokens=sum(len(request.prompt_token_ids) for request in generation.requests))


def failure_of(state: ServerState, delta: OutputDelta, format_field: str = STRUCTURED_OUTPUTS) -> ApiError:
    """503 where the server goes, 400 where the request asked for what cannot be, 500 where it failed otherwise.

    format_field: under which name the client said what its answer must look like.
    """
    message = delta.error or "the request was ended"
    if state.draining:
        return ApiError(503, message, code="draining", close=True)
    if state.engine.failure is not None:
        return ApiError(503, message, code="engine_dead", close=True)
    if delta.is_refused:
        param = format_field if message.startswith(GRAMMAR_ENDED) else None
        message = message.replace(STRUCTURED_OUTPUTS, format_field, 1)
        return ApiError(400, message, code="invalid_value", param=param)
    return ApiError(500, message, code="generation_failed")


def generation_of(http: web.Request, **parts: Any) -> Generation:
    """A generation for this HTTP request, with a new id and the time of day."""
    return Generation(state=http.app[STATE], created=int(time.time()), **parts)
