"""Answers of the adapter that are not metrics, as exceptions that know their Kubernetes Status.

AdapterError
├── BadRequestError        400
├── UnauthorizedError      401
├── ForbiddenError         403
├── NotFoundError          404
├── MethodNotAllowedError  405
├── RequestTimeoutError    408  a head that did not end in time
├── InternalError          500  a fault of ours
└── UnavailableError       503  the API server could not be asked who the caller is or what it may do
"""

from __future__ import annotations

from typing import Any, ClassVar


class AdapterError(Exception):
    """Base; the message is what the caller reads."""

    code: ClassVar[int]
    reason: ClassVar[str]

    def __init__(self, message: str, *, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = details

    def status(self) -> dict[str, Any]:
        """The `Status` document that every Kubernetes client understands."""
        document: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "code": self.code,
        }
        if self.details is not None:
            document["details"] = self.details
        return document


class BadRequestError(AdapterError):
    code = 400
    reason = "BadRequest"


class UnauthorizedError(AdapterError):
    code = 401
    reason = "Unauthorized"


class ForbiddenError(AdapterError):
    code = 403
    reason = "Forbidden"


class NotFoundError(AdapterError):
    code = 404
    reason = "NotFound"


class MethodNotAllowedError(AdapterError):
    code = 405
    reason = "MethodNotAllowed"


class RequestTimeoutError(AdapterError):
    code = 408
    reason = "Timeout"


class InternalError(AdapterError):
    code = 500
    reason = "InternalError"


class UnavailableError(AdapterError):
    code = 503
    reason = "ServiceUnavailable"
