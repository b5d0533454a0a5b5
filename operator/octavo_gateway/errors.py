"""What the gateway itself can refuse or fail at, in OpenAI's error shape.

GatewayError
├── BadRequest             400, 404, 405, 408, 413, 415, 417, 431: the client can mend it
├── Unauthorized           401: no key, or none that is known
├── Forbidden              403: a key for other models
├── QuotaExceeded          429 + Retry-After: the key has used up its tokens
├── ModelNotFound          404
├── ResponseNotFound       404: what stored it is gone, or never was
├── Unavailable            503 + Retry-After: nothing can serve this now
├── UpstreamFailed         502: a replica broke before its first byte, twice, or in the middle of its answer
│   └── UpstreamStalled    504: a replica fell silent in the middle of its answer
└── TimedOut               504: a replica did not begin to answer, or the answer took too long
CannotListen               a port is taken or not allowed; the process ends with it
BadCertificate             no certificate and its key; the process ends with it, or keeps the one before
KubeApiError               the API server refused or could not be understood (never shown to clients)
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

MAX_MESSAGE_CHARS = 1000


class GatewayError(Exception):
    """An answer that is an error; ``status`` and the four keys of OpenAI's error object."""

    status = 500
    type = "server_error"
    code: str | None = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status if status is not None else type(self).status
        self.code = code if code is not None else type(self).code
        self.param = param
        self.headers: dict[str, str] = dict(headers or {})

    def body(self) -> bytes:
        return error_body(self.message, kind=self.type, param=self.param, code=self.code)


class BadRequest(GatewayError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class Unauthorized(GatewayError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(GatewayError):
    status = 403
    type = "permission_error"
    code = "model_not_allowed"


class QuotaExceeded(GatewayError):
    status = 429
    type = "rate_limit_error"
    code = "quota_exceeded"

    def __init__(self, message: str, *, code: str, limit: int, left: int, retry_after_s: int) -> None:
        headers = {
            "Retry-After": str(retry_after_s),
            "X-RateLimit-Limit-Tokens": str(limit),
            "X-RateLimit-Remaining-Tokens": str(left),
        }
        super().__init__(message, code=code, headers=headers)


class ModelNotFound(GatewayError):
    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class ResponseNotFound(GatewayError):
    status = 404
    type = "invalid_request_error"
    code = "response_not_found"


class Unavailable(GatewayError):
    status = 503
    type = "service_unavailable"
    code = "unavailable"

    def __init__(self, message: str, *, code: str, retry_after_s: int = 5) -> None:
        super().__init__(message, code=code, headers={"Retry-After": str(retry_after_s)})


class UpstreamFailed(GatewayError):
    status = 502
    type = "server_error"
    code = "upstream_failed"


class UpstreamStalled(UpstreamFailed):
    status = 504
    code = "timeout"


class TimedOut(GatewayError):
    status = 504
    type = "server_error"
    code = "timeout"


class CannotListen(Exception):
    """A port cannot be listened on; the message says which and why."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        why = os.strerror(error.errno) if error.errno else str(error)
        super().__init__(f"cannot listen on {host or '*'}:{port}: {why[:1].lower()}{why[1:]}")


class BadCertificate(Exception):
    """The public port cannot speak TLS; the message says which files, and why."""


class KubeApiError(Exception):
    """The API server answered with a status that is not a success; ``status`` 0 means it could not be reached."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


def error_body(message: str, *, kind: str, param: str | None = None, code: str | None = None) -> bytes:
    """The one error object of the API, all four keys, its message bounded."""
    error = {"message": message[:MAX_MESSAGE_CHARS], "type": kind, "param": param, "code": code}
    # As ASCII: a client's half of a surrogate pair has no UTF-8.
    return json.dumps({"error": error}).encode()
