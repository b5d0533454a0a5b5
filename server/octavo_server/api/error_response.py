"""One shape for every error: `{"error": {"message", "type", "param", "code"}}`, all four keys, bounded in size."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from aiohttp import web

from octavo_server.errors import (
    ConflictError,
    DiskError,
    EngineDeadError,
    InvalidRequestError,
    NotStoredError,
    OctavoError,
    QueueFullError,
    StoreError,
    StoreFullError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_MESSAGE_CHARS = 1000
REQUEST_ID_HEADER = "X-Request-Id"

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    417: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


_STORE: Mapping[type[StoreError], tuple[int, str]] = {
    NotStoredError: (404, "not_found"),
    ConflictError: (409, "conflict"),
    StoreFullError: (400, "storage_full"),
    DiskError: (507, "disk_full"),
}


class ApiError(OctavoError):
    """An answer other than 200, thrown from wherever it is known."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        self.close = close

    @property
    def reason(self) -> str:
        """Label of `octavo_rejected_requests_total`."""
        return self.code or {413: "too_large", 415: "media_type", 500: "internal"}.get(self.status, "invalid")


def error_body(error: ApiError) -> str:
    """The JSON text of an error."""
    message = str(error)
    shown = message if len(message) <= MAX_MESSAGE_CHARS else message[: MAX_MESSAGE_CHARS - 1] + "…"
    kind = _TYPES.get(error.status, "server_error")
    return json.dumps({"error": {"message": shown, "type": kind, "param": error.param, "code": error.code}})


def error_response(error: ApiError) -> web.Response:
    """The response of an `ApiError`."""
    response = web.Response(
        status=error.status,
        text=error_body(error),
        content_type="application/json",
        headers=error.headers,
    )
    if error.close:
        response.force_close()
    return response


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of `error`; anything unknown is 500 without a detail."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidRequestError):
        return ApiError(400, str(error), code="invalid_value", param=error.param)
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", headers={"Retry-After": "1"})
    if isinstance(error, StoreError):
        status, code = _STORE[type(error)]
        return ApiError(status, str(error), code=code)
    if isinstance(error, EngineDeadError):
        return ApiError(503, str(error), code="engine_dead", close=True)
    if isinstance(error, web.HTTPException):
        return _of_aiohttp(error)
    return ApiError(500, "the server failed on this request; its log holds the reason", code="internal_error")


def _of_aiohttp(error: web.HTTPException) -> ApiError:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"method {error.method} is not allowed here; use {allowed}"
        return ApiError(405, message, code="method_not_allowed", headers={"Allow": allowed})
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return ApiError(413, "the body is larger than --max-request-bytes allows", code="too_large", close=True)
    if error.status == 404:
        return ApiError(404, "there is no such path; /v1/chat/completions is one", code="path_not_found")
    return ApiError(error.status, error.reason, code="http_error")
