"""The aiohttp application of the custom metrics adapter: authenticate, authorise, answer.

Every answer is JSON; every refusal is a Kubernetes `Status`. Nothing is answered before the caller is known and its
right was reviewed, discovery included.
"""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import Callable, Iterable
from typing import Any

from aiohttp import web

from octavo_operator.metrics_adapter.access import Authenticator, Authorizer, Caller
from octavo_operator.metrics_adapter.documents import metric_value_list
from octavo_operator.metrics_adapter.errors import AdapterError, InternalError, MethodNotAllowedError
from octavo_operator.metrics_adapter.kube_access import PathAccess
from octavo_operator.metrics_adapter.query import discovery_document, measure, parse_access, parse_query
from octavo_operator.metrics_adapter.store import MetricsStore, ServerPod

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 64 * 1024
"""No request that is served has a body."""


def make_adapter(
    *,
    list_pods: Callable[[], Iterable[ServerPod]],
    store: MetricsStore,
    authenticator: Authenticator,
    authorizer: Authorizer,
    now: Callable[[], float],
) -> web.Application:
    """The application; it must be served over TLS that asks for client certificates (`serving.py`)."""

    async def answer(request: web.Request) -> dict[str, Any]:
        user = await authenticator.authenticate(Caller(headers=request.headers, certificate_der=_certificate(request)))
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowedError(f"the method {request.method} is not allowed; metrics can only be read")
        access = parse_access(request.raw_path)
        await authorizer.require(user, access)
        if isinstance(access, PathAccess):
            return discovery_document(access.path)
        query = parse_query(
            access, request.query.get("labelSelector", ""), request.query.get("metricLabelSelector", "")
        )
        return metric_value_list(access.version, measure(query, list_pods(), store, now()))

    async def handle(request: web.Request) -> web.Response:
        try:
            return _json(200, await answer(request))
        except AdapterError as error:
            logger.debug("refused", extra={"path": request.path, "code": error.code, "error": str(error)})
            return _json(error.code, error.status())
        except Exception:
            # The last resort of a request: the caller gets a Status, the log gets the traceback.
            logger.exception("a request for metrics failed unexpectedly", extra={"path": request.path})
            error_of_ours = InternalError("the metrics adapter failed to answer; the operator's log says why")
            return _json(error_of_ours.code, error_of_ours.status())

    app = web.Application(client_max_size=MAX_REQUEST_BYTES)
    app.router.add_route("*", "/{path:.*}", handle)
    return app


def _certificate(request: web.Request) -> bytes | None:
    """The client certificate that TLS verified on this connection, DER."""
    connection = request.get_extra_info("ssl_object")
    if not isinstance(connection, ssl.SSLObject):
        return None
    return connection.getpeercert(binary_form=True)


def _json(code: int, document: dict[str, Any]) -> web.Response:
    headers = {"Cache-Control": "no-cache, private"}
    if code == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if code == 405:
        headers["Allow"] = "GET, HEAD"
    body = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    return web.Response(status=code, body=body, content_type="application/json", headers=headers)
