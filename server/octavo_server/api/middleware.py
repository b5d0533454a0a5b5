"""What happens around every handler: request id, key, errors in one shape, counts.

Order, from outside: errors (so that every answer has the shape and the id) → a browser's preflight → key → handler.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from typing import TYPE_CHECKING, TypeVar

from aiohttp import web

from octavo_server.api.error_response import REQUEST_ID_HEADER, ApiError, as_api_error, error_response
from octavo_server.api.state import STATE

if TYPE_CHECKING:
    from octavo_server.api.endpoint import Handler

logger = logging.getLogger(__name__)

Answered = TypeVar("Answered", bound=web.StreamResponse)

REQUEST_ID = web.RequestKey("request_id", str)
MAX_REQUEST_ID_CHARS = 128

COUNTED = web.AppKey("counted", frozenset[str])
"""Paths whose refusals are counted, and for whose handlers a drain waits: those that run the model."""
OPEN = web.AppKey("open", frozenset[str])
"""Paths that need no key."""


async def set_request_id_header(request: web.Request, response: web.StreamResponse) -> None:
    """Signal handler: every answer, a stream's too, carries the request's id."""
    # Without an id of its own where aiohttp refused it before any middleware ran.
    response.headers[REQUEST_ID_HEADER] = request.get(REQUEST_ID) or request.app[STATE].new_id()


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Gives the request an id and turns what is raised into an error of the one shape."""
    state = request.app[STATE]
    given = request.headers.get(REQUEST_ID_HEADER, "")
    request[REQUEST_ID] = _clean_id(given) or state.new_id()
    started = time.monotonic()
    status = 499  # the client went away: nginx's number, for the log alone
    try:
        response = await handler(request)
        status = response.status
        return _closing(request, response)
    except ConnectionResetError:
        # The client went away while its answer was being written; aiohttp closes the connection.
        raise
    except Exception as error:
        api_error = as_api_error(error)
        status = api_error.status
        if status >= 500 and not isinstance(error, ApiError):
            logger.exception("a request failed", extra={"request_id": request[REQUEST_ID]})
        if request.path in request.app[COUNTED]:
            state.metrics.record_rejected(api_error.reason)
        return _closing(request, error_response(api_error))
    finally:
        if state.config.enable_log_requests:
            logger.info(
                "%s %s %d %.3f s",
                request.method,
                request.path,
                status,
                time.monotonic() - started,
                extra={"request_id": request[REQUEST_ID]},
            )


def _closing(request: web.Request, response: Answered) -> Answered:
    """The response; the last of its connection where the body cannot be decoded, so that no next request is found."""
    if not response.prepared and request.content.exception() is not None:
        response.force_close()
    return response


@web.middleware
async def require_key(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Where keys are configured, refuses what is not open without one of them."""
    keys = request.app[STATE].config.api_key
    if keys and request.path not in request.app[OPEN]:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not _is_known(given.strip(), keys):
            raise ApiError(
                401,
                "a valid key is needed: send Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
    return await handler(request)


def _is_known(given: str, keys: tuple[str, ...]) -> bool:
    """Compares with every key, in a time that depends on neither."""
    digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
    matches = [hmac.compare_digest(digest, hashlib.sha256(key.encode()).digest()) for key in keys]
    return any(matches)


def _clean_id(given: str) -> str:
    """The client's id, where it can stand in a header and a log."""
    is_clean = given.isascii() and given.isprintable() and len(given) <= MAX_REQUEST_ID_CHARS
    return given if is_clean else ""
