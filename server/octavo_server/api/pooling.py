"""From texts to hidden states: what embeddings, scores and rankings have in common.

However many inputs a client sends, it has only as many in the engine as keep it busy; the rest wait here, so that a long
list neither fills the queue nor is refused for its length.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo_server.api.generation import failure_of
from octavo_server.api.prompts import encode_prompt
from octavo_server.api.schemas import refuse_not_served
from octavo_server.engine.admission import check_request
from octavo_server.engine.request import POOLING, FinishReason, Request
from octavo_server.engine.vectors import last_tokens
from octavo_server.errors import InvalidRequestError, QueueFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from octavo_server.api.fields import Fields
    from octavo_server.api.state import ServerState
    from octavo_server.engine.request_stream import RequestStream
    from octavo_server.engine.served_model import ServedModel

MAX_INPUTS = 2048
"""OpenAI's limit of one request."""
RETRY_S = 0.01
"""Until a request that has begun asks again for room in the queue."""

# vLLM's, known and not served; beside each the values that change nothing.
NOT_SERVED: Mapping[str, tuple[Any, ...]] = {"mm_processor_kwargs": ({},), "chat_template": ()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingOptions:
    """Fields that all bodies have."""

    model: str
    truncate_prompt_tokens: int | None
    add_special_tokens: bool
    priority: int
    cache_salt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """The hidden states, in the order of the prompts, and what they took."""

    states: list[bytes]
    prompt_tokens: int
    cached_tokens: int

    @property
    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


def parse_options(fields: Fields, model: str) -> PoolingOptions:
    """Raises InvalidRequestError, naming the field."""
    refuse_not_served(fields, NOT_SERVED)
    fields.skip(("user",))
    truncate = fields.integer("truncate_prompt_tokens", -1, 2**31 - 1)
    if truncate == 0:
        raise fields.fail("truncate_prompt_tokens", "-1 (as many as fit) or at least 1")
    return PoolingOptions(
        model=model,
        truncate_prompt_tokens=truncate,
        add_special_tokens=fields.boolean("add_special_tokens", default=True),
        priority=fields.integer("priority", -(2**31), 2**31 - 1) or 0,
        cache_salt=fields.text("cache_salt", max_chars=1024) or "",
    )


def encode(model: ServedModel, text: str, options: PoolingOptions, name: str) -> list[int]:
    """Token ids of one input, truncated where that was asked for; takes time, so a thread does it.

    Raises:
        InvalidRequestError: names the input; it is longer than the context.
    """
    context, asked = model.limits.max_sequence_tokens, options.truncate_prompt_tokens
    keep = context if asked == -1 else None if asked is None or asked > context else asked
    return encode_prompt(model, text, add_special_tokens=options.add_special_tokens, keep=keep, name=name)


def make_requests(
    state: ServerState, options: PoolingOptions, prompts: Sequence[list[int]], name_of: Callable[[int], str]
) -> list[Request]:
    """One engine request a prompt, all checked; `name_of` says what the client calls one.

    Raises:
        InvalidRequestError: one of them can never run.
    """
    limits = state.ready_engine().limits
    requests = []
    for number, prompt in enumerate(prompts):
        tokens = last_tokens(prompt, options.truncate_prompt_tokens, limits.max_sequence_tokens)
        request = Request(
            request_id=state.new_id(),
            prompt_token_ids=tuple(tokens),
            params=POOLING,
            pools=True,
            arrival_s=time.monotonic(),
            priority=options.priority,
            cache_salt=options.cache_salt,
        )
        try:
            check_request(request, limits)
        except InvalidRequestError as error:
            if error.param != "prompt":
                raise
            raise InvalidRequestError(f"{name_of(number)}: {error}", param=name_of(number)) from error
        requests.append(request)
    return requests


async def pool(state: ServerState, requests: Sequence[Request]) -> Pooled:
    """Runs the requests; whatever happens, none is left in the engine.

    Raises:
        ApiError: one of them failed, or the engine did.
        QueueFullError: too many wait already.
    """
    engine = state.engine
    found: dict[str, bytes] = {}
    cached_tokens = 0
    # Two windows at once keep every place busy and leave the queue to others.
    size = max(1, engine.snapshot.max_num_seqs // 2)
    windows = deque(requests[at : at + size] for at in range(0, len(requests), size))
    streams: deque[RequestStream] = deque()
    try:
        while windows or streams:
            if windows and len(streams) < 2:
                try:
                    streams.append(engine.submit(windows[0]))
                    windows.popleft()
                    continue
                except QueueFullError:
                    # What is in the engine already may go on, and make room; what has begun is not given up halfway.
                    if not streams and not found:
                        raise
                    if not streams:
                        await asyncio.sleep(RETRY_S)
                        continue
            cached_tokens += await _collect(state, streams[0], found)
            streams.popleft()
    finally:
        for stream in streams:
            engine.abort(stream)
    return Pooled(
        states=[found[request.request_id] for request in requests],
        prompt_tokens=sum(len(request.prompt_token_ids) for request in requests),
        cached_tokens=cached_tokens,
    )


async def _collect(state: ServerState, stream: RequestStream, found: dict[str, bytes]) -> int:
    """Adds the stream's hidden states to `found`; tokens that the prefix cache saved."""
    cached_tokens = 0
    while deltas := await stream.read():
        for delta in deltas:
            if delta.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
                raise failure_of(state, delta)
            if delta.hidden_state is not None:
                found[delta.request_id] = delta.hidden_state
                cached_tokens += delta.num_cached_tokens
        # Between windows others have their turn.
        await asyncio.sleep(0)
    return cached_tokens
