"""Reads a request's JSON body; whatever is wrong with it is a 400 or 415 that says so."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from aiohttp import web

from octavo_server.api.error_response import ApiError
from octavo_server.api.json_bounds import too_many
from octavo_server.api.state import STATE

if TYPE_CHECKING:
    from collections.abc import Callable

Parsed = TypeVar("Parsed")

LARGE_BODY_BYTES = 2**18
"""Above it checking what the body holds would hold up every stream, so a thread does it."""

CHARSETS = ("utf-8", "utf8", "us-ascii")
ENCODINGS = ("identity", "gzip", "deflate")
"""Undone before the body is read here."""

READ_TIMEOUT_S = 30.0
"""A body of which nothing comes for so long is given up, as the gateway does."""
BODY_TIMEOUT_S = 600.0
"""A body that has not come whole by then is given up, though something came all along: 64 MiB at 1 Mbit/s take less."""


async def read_json(request: web.Request) -> dict[str, Any]:
    """The body as an object. Raises as `read_parsed`."""
    return await read_parsed(request, lambda body: body)


async def read_parsed(request: web.Request, parse: Callable[[dict[str, Any]], Parsed]) -> Parsed:
    """What `parse` makes of the body; a thread calls it where the body is large.

    Raises:
        InvalidRequestError: from `parse`.
        ApiError: 415 for another content type, charset or encoding, 413 over --max-request-bytes, 408 where it stops coming, 400 for anything but one JSON object.
    """
    _check_headers(request)
    raw = await _read(request)
    if len(raw) > LARGE_BODY_BYTES:
        return await asyncio.to_thread(lambda: parse(_object(raw)))
    return parse(_object(raw))


def _check_headers(request: web.Request) -> None:
    # aiohttp gives octet-stream where the header is missing.
    if request.content_type not in ("application/json", "application/octet-stream"):
        said = f"the content type is {request.content_type[:100]}; send application/json"
    elif (request.charset or "utf-8").lower() not in CHARSETS:
        said = f"the charset is {str(request.charset)[:100]}; JSON is UTF-8"
    elif (encoding := request.headers.get("Content-Encoding", "identity")).lower() not in ENCODINGS:
        said = f"the content encoding is {encoding[:100]}; send one of {', '.join(ENCODINGS)}"
    else:
        return
    raise ApiError(415, said, code="media_type")


async def _read(request: web.Request) -> bytes:
    limit = request.app[STATE].config.max_request_bytes
    body = bytearray()
    _check_size(request.content_length or 0, limit)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while chunk := await _next_chunk(request):
                body += chunk
                _check_size(len(body), limit)
    except TimeoutError as error:
        message = f"the body did not come whole within {BODY_TIMEOUT_S:g} s; send it faster"
        raise ApiError(408, message, code="request_timeout", close=True) from error
    except web.RequestPayloadError as error:
        raise ApiError(
            400, "the body is not what its headers say (encoding or length)", code="invalid_body", close=True
        ) from error
    return bytes(body)


async def _next_chunk(request: web.Request) -> bytes:
    """Empty at the end."""
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await request.content.readany()
    except TimeoutError as error:
        message = f"nothing of the body came for {READ_TIMEOUT_S:g} s; send it again"
        raise ApiError(408, message, code="request_timeout", close=True) from error


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        message = f"the body has at least {size:,} bytes, --max-request-bytes is {limit:,}; send less"
        # What is still to come is not read, so the connection cannot serve another request.
        raise ApiError(413, message, code="too_large", close=True)


def _object(raw: bytes) -> dict[str, Any]:
    if len(raw) > LARGE_BODY_BYTES and (message := too_many(raw)) is not None:
        raise ApiError(400, message, code="too_many_values")
    try:
        value = json.loads(raw, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from error
    except ValueError as error:
        # Covers JSONDecodeError, UnicodeDecodeError and numbers of thousands of digits.
        raise ApiError(400, f"the body is not valid JSON: {str(error)[:200]}", code="invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
