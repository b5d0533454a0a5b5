"""The aiohttp application: paths and what stands around them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, web

from octavo_server.api import responses
from octavo_server.api.cors import answer_preflight, set_cors_headers
from octavo_server.api.endpoint import TABLE
from octavo_server.api.error_response import ApiError, error_response
from octavo_server.api.middleware import COUNTED, OPEN, errors, require_key, set_request_id_header
from octavo_server.api.routes import ENDPOINTS
from octavo_server.api.state import STATE

if TYPE_CHECKING:
    from octavo_server.api.endpoint import Handler
    from octavo_server.api.state import ServerState


def make_app(state: ServerState) -> web.Application:
    """The application over `state`; it owns nothing that must be closed."""
    tracing = [] if state.tracing is None else [state.tracing.middleware]
    app = web.Application(
        middlewares=[*tracing, errors, answer_preflight, require_key, count_active],
        client_max_size=state.config.max_request_bytes,
    )
    app[STATE] = state
    app[TABLE] = ENDPOINTS
    app[COUNTED] = frozenset(endpoint.path for endpoint in ENDPOINTS if endpoint.generates)
    app[OPEN] = frozenset(endpoint.path for endpoint in ENDPOINTS if endpoint.is_open)
    for endpoint in ENDPOINTS:
        # A GET answers HEAD too.
        add = app.router.add_get if endpoint.method == "GET" else partial(app.router.add_route, endpoint.method)
        add(endpoint.path, endpoint.handler, expect_handler=answer_expectation)
    app.on_response_prepare.append(set_request_id_header)
    app.on_response_prepare.append(set_cors_headers)
    app.on_cleanup.append(responses.end_background_responses)
    return app


async def answer_expectation(request: web.Request) -> web.StreamResponse | None:
    """Lets a client that asks first send its body; what else it may expect is refused."""
    if request.version < HttpVersion11:
        return None
    if request.headers["Expect"].lower() != "100-continue":
        return error_response(
            ApiError(417, "the header Expect may be 100-continue alone; leave it out", code="expectation", close=True)
        )
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    # The writer counts it as a begun answer, after which no error could be said.
    request.writer.output_size = 0
    return None


@web.middleware
async def count_active(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Counts generation handlers, so that draining knows when the last answer has been written."""
    if request.path not in request.app[COUNTED]:
        return await handler(request)
    state = request.app[STATE]
    state.num_active += 1
    try:
        return await handler(request)
    finally:
        state.num_active -= 1
