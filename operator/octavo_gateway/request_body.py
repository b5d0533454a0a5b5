"""What the gateway reads from a request's body: the model's name, whether it streams, and its affinity.

The body is otherwise passed on byte by byte; only ``NAMESPACE/NAME`` is replaced by the name that the server knows.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from aiohttp import web

from .errors import BadRequest, Unavailable
from .stored_responses import one_place

AFFINITY_CHARS = 2048
"""Characters of each part of a conversation's beginning that enter its hash."""
EDGE_CHARS = 128
"""Of each end of a text that is no words, such as an image."""
MAX_PIECES = 64
AFFINITY_TOKENS = 512
"""The same of a prompt that comes as token ids."""
CODINGS = frozenset({"", "identity", "gzip", "deflate"})
"""Of ``Content-Encoding``; these are inflated while a body is read, so that its limits count what comes out."""
MAX_COUNT = 10**9
"""A larger number of tokens or answers is the server's to refuse."""
MAX_VALUES = 4_000_000
"""Most values in a body, as its brackets and commas tell before it is parsed: two bytes become fifty in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundBody:
    """A request may wait for minutes, so what was parsed is not kept."""

    raw: bytes
    model: str
    stream: bool
    affinity: str | None
    """A digest of the conversation's beginning and the cache salt: equal for all turns of one conversation."""
    stored_id: str | None = None
    """A stored response or item that ``/v1/responses`` goes on from; all others that it names lie beside it."""
    asks_for_usage: bool = False
    """A stream that shall end with its usage."""
    has_stream_options: bool = False
    max_tokens: int | None = None
    num_answers: int = 1

    def for_server(self, served_name: str, *, ask_for_usage: bool = False) -> bytes:
        """The bytes to send: as they came, or with the name that the server goes by, or asking for usage too."""
        if served_name == self.model and not ask_for_usage:
            return self.raw
        if served_name == self.model and not self.has_stream_options:
            # At the end, so that the rest goes as it came: an object with a model is not empty.
            return self.raw.rstrip()[:-1] + b', "stream_options": {"include_usage": true}}'
        fields = {**json.loads(self.raw), "model": served_name}
        if ask_for_usage:
            fields["stream_options"] = {**(fields.get("stream_options") or {}), "include_usage": True}
        return json.dumps(fields).encode()


class BodyBudget:
    """Bounds the bytes of all bodies in memory at once, so that many large requests cannot exhaust the gateway."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.used_bytes = 0

    def take(self, size: int) -> None:
        if self.used_bytes + size > self._limit_bytes:
            raise Unavailable(
                f"The gateway already holds {self.used_bytes} bytes of request bodies, its limit is "
                f"{self._limit_bytes}; try again shortly.",
                code="gateway_busy",
                retry_after_s=1,
            )
        self.used_bytes += size

    def give_back(self, size: int) -> None:
        self.used_bytes -= size


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """Of one request's body."""

    max_bytes: int
    silence_s: float
    """Seconds without a byte: what came of a body takes from the budget of all."""
    whole_s: float
    """Seconds in all; 0 is no limit."""


class BodyReader:
    """Reads one request's body within its own limits and the gateway's budget; a context that gives the budget back."""

    def __init__(self, budget: BodyBudget, limits: BodyLimits) -> None:
        self._budget = budget
        self._limits = limits
        self._taken = 0

    def __enter__(self) -> BodyReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.give_back(self._taken)

    async def read(self, request: web.Request) -> InboundBody:
        if request.headers.get("Content-Encoding", "").strip().lower() not in CODINGS:
            raise unsupported_coding()
        if request.headers.get("Content-Type", "").lstrip().lower().startswith("multipart/"):
            raise _unsupported_form()
        self._check_size(request.content_length or 0)
        try:
            if request.content.is_eof():
                # Nearly every body comes with its head: nobody is waited for, so no clock need run.
                raw = request.content.read_nowait()
                self._take(raw, so_far=0)
            else:
                async with asyncio.timeout(self._limits.whole_s or None):
                    raw = await self._read_whole(request)
        except TimeoutError:
            raise _too_slow(f"The request body did not come within {self._limits.whole_s:g} s") from None
        except web.RequestPayloadError as error:
            raise BadRequest(
                f"The request body is not what its headers say: {' '.join(str(error).split())[:200]}",
                code="invalid_body",
                headers={"Connection": "close"},
            ) from None
        return parse_body(raw)

    async def _read_whole(self, request: web.Request) -> bytes:
        chunks = bytearray()
        while chunk := await self._next_chunk(request):
            self._take(chunk, so_far=len(chunks))
            chunks += chunk
        return bytes(chunks)

    async def _next_chunk(self, request: web.Request) -> bytes:
        """Empty at the end."""
        limit = asyncio.timeout(self._limits.silence_s)
        try:
            async with limit:
                return await request.content.readany()
        except TimeoutError:
            if not limit.expired():
                raise
            raise _too_slow(f"Nothing of the request body came for {self._limits.silence_s:g} s") from None

    def _take(self, chunk: bytes, *, so_far: int) -> None:
        self._check_size(so_far + len(chunk))
        self._budget.take(len(chunk))
        self._taken += len(chunk)

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_bytes:
            raise too_large(size, self._limits.max_bytes)


def too_large(size: int, max_bytes: int) -> BadRequest:
    return BadRequest(
        f"The request body has at least {size} bytes, the limit is {max_bytes}; send less.",
        status=413,
        code="request_too_large",
        # What is still to come is not read, so the connection cannot serve another request.
        headers={"Connection": "close"},
    )


def unsupported_coding() -> BadRequest:
    return BadRequest(
        "The request's Content-Encoding is not supported; send the body as it is, or by gzip or deflate.",
        status=415,
        code="unsupported_encoding",
        headers={"Accept-Encoding": "gzip, deflate", "Connection": "close"},
    )


def _unsupported_form() -> BadRequest:
    return BadRequest(
        "The gateway finds the model in a body of JSON and reads no multipart/form-data; send JSON, or ask a server "
        "that takes forms at its own address.",
        status=415,
        code="unsupported_media_type",
        headers={"Connection": "close"},
    )


def _too_slow(what: str) -> BadRequest:
    return BadRequest(f"{what}; send it again.", status=408, code="request_timeout", headers={"Connection": "close"})


def parse_body(raw: bytes) -> InboundBody:
    values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if values > MAX_VALUES:
        raise BadRequest(
            f"The request body has about {values} values, the limit is {MAX_VALUES}; send fewer.",
            status=413,
            code="request_too_large",
        )
    try:
        # Left to itself it would take UTF-16 and 32 too, which no server does.
        fields = json.loads(raw.decode())
    except (ValueError, RecursionError):
        raise BadRequest("The request body is not valid JSON in UTF-8.", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise BadRequest("The request body must be a JSON object.", code="invalid_json")
    model = fields.get("model")
    if model is None:
        raise BadRequest("The field 'model' is missing; GET /v1/models lists what there is.", param="model")
    if not isinstance(model, str) or not model:
        raise BadRequest("The field 'model' must be a non-empty string.", param="model")
    options = fields.get("stream_options")
    return InboundBody(
        raw=raw,
        model=model,
        stream=fields.get("stream") is True,
        affinity=_affinity(fields),
        stored_id=one_place(_stored_ids(fields)),
        # Options that are no object are the server's to refuse, so nothing is added to them.
        asks_for_usage=not isinstance(options, dict | None) or (options or {}).get("include_usage") is True,
        has_stream_options="stream_options" in fields,
        max_tokens=_max_tokens(fields),
        num_answers=_count(fields.get("n")) or 1,
    )


def _stored_ids(fields: Mapping[str, Any]) -> Iterator[str]:
    """What a request for a response refers to instead of saying it."""
    previous, items = fields.get("previous_response_id"), fields.get("input")
    if isinstance(previous, str) and previous:
        yield previous
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and isinstance(item.get("id"), str) and _is_reference(item):
            yield item["id"]


def _is_reference(item: Mapping[str, Any]) -> bool:
    """The type may be left out, as OpenAI has it."""
    kind = item.get("type")
    return kind == "item_reference" or (kind is None and "role" not in item)


def _max_tokens(fields: Mapping[str, Any]) -> int | None:
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    return next((count for name in names if (count := _count(fields.get(name))) is not None), None)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT else None


def _affinity(fields: Mapping[str, Any]) -> str | None:
    beginning = _beginning(fields)
    if not beginning:
        return None
    parts = [str(fields.get("cache_salt", "")), *beginning]
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _beginning(fields: Mapping[str, Any]) -> list[str]:
    """System text and first user message of a chat or of ``/v1/responses``, or the start of a prompt."""
    messages = fields.get("messages")
    if isinstance(messages, list):
        return _first_turn(messages)
    prompt = fields.get("prompt", fields.get("input"))
    instructions = fields.get("instructions")
    system = [instructions[:AFFINITY_CHARS]] if isinstance(instructions, str) else []
    if isinstance(prompt, str) and prompt:
        return [*system, prompt[:AFFINITY_CHARS]]
    if not isinstance(prompt, list) or not prompt:
        return []
    if isinstance(prompt[0], int):
        return [",".join(map(str, prompt[:AFFINITY_TOKENS]))]
    turn = _first_turn(prompt)
    return [*system, *turn] if turn else []


def _first_turn(messages: list[Any]) -> list[str]:
    parts: list[str] = []
    for message in messages:
        if not isinstance(message, dict):
            return []
        parts.append(_text_of(message.get("content"))[:AFFINITY_CHARS])
        if message.get("role") == "user":
            break
    return parts


def _text_of(content: Any) -> str:
    """The same for a text and for a list of one part with it: clients write both."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(islice(chain.from_iterable(map(_part, content)), MAX_PIECES))
    return "".join(islice(_pieces(content), MAX_PIECES))


def _part(part: Any) -> Iterator[str]:
    is_text = isinstance(part, dict) and isinstance(part.get("text"), str)
    return iter((part["text"],)) if is_text else _pieces(part)


def _pieces(value: Any) -> Iterator[str]:
    """What an image or a file is known by without reading all of it: both ends and the length of each of its texts."""
    if isinstance(value, dict):
        for name in sorted(value):
            yield name
            yield from _pieces(value[name])
    elif isinstance(value, list):
        for each in value:
            yield from _pieces(each)
    elif isinstance(value, str):
        yield value if len(value) <= 2 * EDGE_CHARS else f"{len(value)} {value[:EDGE_CHARS]}{value[-EDGE_CHARS:]}"
    else:
        yield repr(value)
