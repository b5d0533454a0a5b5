"""Reads a request's JSON body; whatever is wrong with it is a 400 or 415 that says so."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NoReturn

from octavo_server.api.error_response import ApiError

if TYPE_CHECKING:
    from aiohttp import web

LARGE_BODY_BYTES = 2**18
"""Above it parsing would hold up every stream for milliseconds, so a thread does it."""


async def read_json(request: web.Request) -> dict[str, Any]:
    """The body as an object.

    Raises:
        ApiError: 415 for another content type, 400 for anything but one JSON object.
        HTTPRequestEntityTooLarge: over the limit that the application was made with.
    """
    # aiohttp gives octet-stream where the header is missing.
    if request.content_type not in ("application/json", "application/octet-stream"):
        raise ApiError(
            415, f"the content type is {request.content_type[:100]}; send application/json", code="media_type"
        )
    raw = await request.read()
    try:
        if len(raw) > LARGE_BODY_BYTES:
            value = await asyncio.to_thread(_parse, raw)
        else:
            value = _parse(raw)
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from error
    except ValueError as error:
        # Covers JSONDecodeError, UnicodeDecodeError and numbers of thousands of digits.
        raise ApiError(400, f"the body is not valid JSON: {str(error)[:200]}", code="invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return value


def _parse(raw: bytes) -> Any:
    return json.loads(raw, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
