"""The aiohttp application: paths and what stands around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, web

from octavo_server.api import chat, completions, life, models, tokens
from octavo_server.api.error_response import ApiError, error_response
from octavo_server.api.middleware import errors, require_key, set_request_id_header
from octavo_server.api.state import STATE

if TYPE_CHECKING:
    from octavo_server.api.middleware import Handler
    from octavo_server.api.state import ServerState

ROUTES: dict[tuple[str, str], Handler] = {
    ("POST", "/v1/chat/completions"): chat.chat_completions,
    ("POST", "/v1/completions"): completions.completions,
    ("GET", "/v1/models"): models.list_models,
    ("GET", "/v1/models/{id:.+}"): models.get_model,
    ("POST", "/tokenize"): tokens.tokenize,
    ("POST", "/detokenize"): tokens.detokenize,
    ("GET", "/health"): life.health,
    ("GET", "/ready"): life.ready,
    ("GET", "/startup"): life.startup,
    ("GET", "/load"): life.load,
    ("GET", "/version"): life.version_,
    ("GET", "/metrics"): life.metrics,
}

GENERATING = frozenset({"/v1/chat/completions", "/v1/completions"})


def make_app(state: ServerState) -> web.Application:
    """The application over `state`; it owns nothing that must be closed."""
    app = web.Application(
        middlewares=[errors, require_key, count_active], client_max_size=state.config.max_request_bytes
    )
    app[STATE] = state
    for (method, path), handler in ROUTES.items():
        # A GET answers HEAD too.
        if method == "GET":
            app.router.add_get(path, handler, expect_handler=answer_expectation)
        else:
            app.router.add_post(path, handler, expect_handler=answer_expectation)
    app.on_response_prepare.append(set_request_id_header)
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
    if request.path not in GENERATING:
        return await handler(request)
    state = request.app[STATE]
    state.num_active += 1
    try:
        return await handler(request)
    finally:
        state.num_active -= 1
