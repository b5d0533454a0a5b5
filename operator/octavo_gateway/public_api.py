"""The public port: OpenAI's API over all models, and how anything else is refused.

Paths are taken as they were sent: one with dot segments, doubled slashes or encoded characters is none of ours, so that
nobody reaches by it what a replica has beside the API.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable

from aiohttp import HttpVersion11, web

from .endpoints import Model, RoutingTable
from .errors import BadRequest, GatewayError, ModelNotFound, Unavailable
from .headers import REQUEST_ID, request_id_of
from .keys import Gate
from .proxy import Proxy
from .reply import error_response
from .request_body import too_large
from .router import Router

logger = logging.getLogger(__name__)

# Where clients of Jina, Cohere and vLLM ask for scores and rankings.
BEYOND_V1 = ("/v2/rerank", "/rerank", "/score")
STORED_RESPONSE_PATHS = (
    ("GET", "/v1/responses/{id}"),
    ("DELETE", "/v1/responses/{id}"),
    ("GET", "/v1/responses/{id}/input_items"),
    ("POST", "/v1/responses/{id}/cancel"),
)
ONE_SERVERS_PATHS = ("/v1/files", "/v1/files/{rest:.*}", "/v1/batches", "/v1/batches/{rest:.*}")
"""What one server with --data-dir keeps for itself."""
ANY_V1_PATH = r"/v1/{path:\w+(?:/\w+)*}"
MAX_SERVICES_SHOWN = 5
POST_ONLY = frozenset(BEYOND_V1) | frozenset(
    f"/v1/{name}"
    for name in ("chat/completions", "completions", "embeddings", "responses", "score", "rerank", "moderations")
)


class PublicApi:
    """Owns nothing; what it answers it takes from the router's table of the moment."""

    def __init__(self, router: Router, gate: Gate, proxy: Proxy, *, max_request_bytes: int) -> None:
        self._router = router
        self._gate = gate
        self._proxy = proxy
        self._max_request_bytes = max_request_bytes

    def application(self) -> web.Application:
        app = web.Application(middlewares=[_errors_as_json])
        for method, path, handler in (
            *((method, "/v1/models", self._list_models) for method in ("GET", "HEAD")),
            *((method, "/v1/models/{id:.+}", self._get_model) for method in ("GET", "HEAD")),
            *((method, path, self._proxy.handle_stored) for method, path in STORED_RESPONSE_PATHS),
            *(("*", path, self._not_routed) for path in ONE_SERVERS_PATHS),
            *(("POST", path, self._proxy.handle) for path in (ANY_V1_PATH, *BEYOND_V1)),
            ("*", "/{path:.*}", _no_such_path),
        ):
            app.router.add_route(method, path, handler, expect_handler=self._expect)
        app.on_response_prepare.append(_common_headers)
        return app

    async def _expect(self, request: web.Request) -> web.Response | None:
        """A client that asks before it sends its body is told at once where it need not; None lets it send."""
        if request.headers["Expect"].lower() != "100-continue":
            return error_response(
                BadRequest("The header Expect can be 100-continue and nothing else.", status=417, code="bad_expect")
            )
        size = request.content_length or 0
        if size > self._max_request_bytes:
            return error_response(too_large(size, self._max_request_bytes))
        if request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            # The answer itself has not begun.
            request.writer.output_size = 0
        return None

    async def _list_models(self, request: web.Request) -> web.Response:
        """What the caller's key may use."""
        table = self._complete_table()
        self._gate.check_any(table, request.headers.get("Authorization", ""))
        may_see = self._may_see(request)
        shown = [_model_object(name, model) for name, model in table.listed.items() if may_see(model)]
        return web.json_response({"object": "list", "data": shown})

    async def _get_model(self, request: web.Request) -> web.Response:
        table, name = self._complete_table(), request.match_info["id"]
        model = table.resolve(name)
        if model is None:
            raise ModelNotFound(table.explain_unknown(name, self._may_see(request)), param="model")
        self._gate.check(model, request.headers.get("Authorization", ""))
        return web.json_response(_model_object(name, model))

    async def _not_routed(self, request: web.Request) -> web.Response:
        may_see = self._may_see(request)
        models = [model for model in self._complete_table().models.values() if model.service_url and may_see(model)]
        shown = ", ".join(f"{model.service_url} ({model.key})" for model in models[:MAX_SERVICES_SHOWN])
        more = f" and {len(models) - MAX_SERVICES_SHOWN} more" if len(models) > MAX_SERVICES_SHOWN else ""
        raise BadRequest(
            f"{request.path[:100]} belongs to one server with --data-dir and is not routed by the gateway; ask the "
            f"model's own Service{f': {shown}{more}' if models else ''}.",
            status=404,
            code="path_not_routed",
        )

    def _may_see(self, request: web.Request) -> Callable[[Model], bool]:
        return self._gate.viewer(request.headers.get("Authorization", ""))

    def _complete_table(self) -> RoutingTable:
        if not self._router.table.is_complete:
            raise Unavailable("The gateway is still reading which models there are.", code="starting", retry_after_s=1)
        return self._router.table


def _model_object(name: str, model: Model) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": int(model.created_s),
        "owned_by": "octavo",
        "ready": any(replica.is_routable for replica in model.replicas),
        "deployment": model.key,
    }


async def _no_such_path(request: web.Request) -> web.Response:
    path = request.rel_url.raw_path
    if path in POST_ONLY:
        raise BadRequest(
            f"{path} takes POST, not {request.method}.",
            status=405,
            code="method_not_allowed",
            headers={"Allow": "POST"},
        )
    if path == "/v1/models":
        raise BadRequest(
            f"{path} takes GET, not {request.method}.",
            status=405,
            code="method_not_allowed",
            headers={"Allow": "GET"},
        )
    raise BadRequest(f"There is no {request.method} {path[:200]} here.", status=404, code="path_not_found")


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except GatewayError as error:
        failure = error
    except web.HTTPException as error:
        failure = BadRequest(error.reason, status=error.status, code="invalid_request")
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:
        # The last resort of a request: the client gets the one error shape, the log gets the traceback.
        logger.exception("a request failed unexpectedly", extra={"path": request.path})
        failure = GatewayError("The gateway failed to handle this request; its log says why.")
    return error_response(failure)


async def _common_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "octavo"
    if REQUEST_ID not in response.headers:
        response.headers[REQUEST_ID] = request_id_of(request, lambda: uuid.uuid4().hex)
