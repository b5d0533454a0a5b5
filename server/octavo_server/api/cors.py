"""Cross-origin calls from web pages (the Fetch standard's CORS protocol): only for origins that `--allowed-origins` names.

A browser asks first (a preflight, without the key) and then reads our answer only where it carries the page's origin.
Nothing here protects the server from anybody but a browser's user; keys do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from octavo_server.api.state import STATE

if TYPE_CHECKING:
    from octavo_server.api.endpoint import Handler

EXPOSED_HEADERS = "X-Request-Id, X-Octavo-Ignored, Retry-After"
METHODS = "GET, HEAD, POST, DELETE"
PREFLIGHT_S = 600
"""Seconds for which a browser need not ask again."""
MAX_HEADERS_CHARS = 1000


@web.middleware
async def answer_preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tells a browser which requests it may send; anything but a preflight goes on."""
    is_preflight = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
    if not is_preflight or allowed_origin(request) is None:
        return await handler(request)
    asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
    headers = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: METHODS,
        hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_S),
        # `*` would leave Authorization out, so what was asked for is said back.
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: asked if len(asked) <= MAX_HEADERS_CHARS else "Authorization, Content-Type",
    }
    return web.Response(status=204, headers=headers)


async def set_cors_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal handler: every answer, errors and streams too, names the page that may read it."""
    origins = request.app[STATE].config.allowed_origins
    if not origins:
        return
    if "*" not in origins:
        # A cache must not give one page's answer to another, nor one without the header to either.
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
    origin = allowed_origin(request)
    if origin is not None:
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED_HEADERS


def allowed_origin(request: web.Request) -> str | None:
    """What to name as the origin that may read the answer; None: nobody may."""
    given = request.headers.get(hdrs.ORIGIN)
    origins = request.app[STATE].config.allowed_origins
    if given is None:
        return None
    if "*" in origins:
        return "*"
    return given if given in origins else None
