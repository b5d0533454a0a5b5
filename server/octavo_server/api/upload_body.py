"""Reads a `multipart/form-data` body part by part, each bounded; whatever is wrong with it is a 4xx that says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import aiohttp
from aiohttp import web

from octavo_server.api.body import READ_TIMEOUT_S
from octavo_server.api.error_response import ApiError
from octavo_server.api.fields import checked_text
from octavo_server.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")

MAX_PARTS = 16
MAX_FIELD_BYTES = 1024
CHUNK_BYTES = 2**18


async def read_parts(request: web.Request) -> AsyncIterator[aiohttp.BodyPartReader]:
    """The parts in the order in which they come; each must be read before the next.

    Raises:
        ApiError: 415 for another content type, 400 for what is no such body, 408 where it stops coming.
    """
    if request.content_type != "multipart/form-data":
        raise ApiError(
            415, f"the content type is {request.content_type[:100]}; send multipart/form-data", code="media_type"
        )
    async with _as_refusals():
        reader = await request.multipart()
        for _ in range(MAX_PARTS):
            part = await _in_time(reader.next())
            if part is None:
                return
            if not isinstance(part, aiohttp.BodyPartReader) or not part.name:
                raise _refusal("each part must be a named field or file")
            if part.headers.get("Content-Transfer-Encoding", "binary").lower() not in ("binary", "7bit", "8bit"):
                raise _refusal("send the parts as they are, without a Content-Transfer-Encoding")
            yield part
    raise _refusal(f"the body has more than {MAX_PARTS} parts")


async def read_text(part: aiohttp.BodyPartReader) -> str:
    """A small field."""
    data = bytearray()
    async for chunk in read_chunks(part):
        data += chunk
        if len(data) > MAX_FIELD_BYTES:
            raise InvalidRequestError(f"{part.name} has more than {MAX_FIELD_BYTES} bytes", param=part.name)
    try:
        return checked_text(data.decode(), part.name or "")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{part.name} is no UTF-8 text", param=part.name) from error


async def read_chunks(part: aiohttp.BodyPartReader) -> AsyncIterator[bytes]:
    """The bytes of a part."""
    async with _as_refusals():
        while chunk := await _in_time(part.read_chunk(CHUNK_BYTES)):
            yield bytes(chunk)


async def _in_time(reading: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await reading
    except TimeoutError as error:
        message = f"nothing of the body came for {READ_TIMEOUT_S:g} s; send it again"
        raise ApiError(408, message, code="request_timeout", close=True) from error


@asynccontextmanager
async def _as_refusals() -> AsyncIterator[None]:
    """What aiohttp's reader raises at damaged bodies."""
    try:
        yield
    except (ValueError, AssertionError, EOFError, web.RequestPayloadError, aiohttp.http.HttpProcessingError) as error:
        raise _refusal("it ends too early, or its boundary is not where its header says") from error


def _refusal(message: str) -> ApiError:
    # What is still to come is not read, so the connection cannot serve another request.
    return ApiError(400, f"this is no valid multipart/form-data body: {message}", code="invalid_body", close=True)
