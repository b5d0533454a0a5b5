"""Begins and ends the record of each request: its metrics, its line in the audit log, its span."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from . import headers
from .audit import AuditLog
from .endpoints import Audit
from .metrics import Metrics
from .record import Record
from .tracing import Tracing

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499


class RequestLog:
    def __init__(
        self,
        metrics: Metrics,
        audit: AuditLog,
        tracing: Tracing,
        *,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._metrics = metrics
        self._audit = audit
        self._tracing = tracing
        self._new_id = new_id
        self._clock = clock
        self._wall_clock = wall_clock

    def begin(self, request: web.Request) -> Record:
        self._metrics.in_flight.inc()
        return Record(
            request_id=headers.request_id_of(request, self._new_id),
            trace=self._tracing.begin(request.headers),
            method=request.method,
            path=request.path,
            client=request.remote or "",
            began=self._clock(),
            began_unix_s=self._wall_clock(),
        )

    def note_answer(self, record: Record) -> None:
        """The head of an answer that goes to the client has come."""
        record.first_byte = self._clock()

    def end(self, record: Record, code: int) -> None:
        seconds = self._clock() - record.began
        self._metrics.in_flight.dec()
        self._count(record, self._metrics.label_of(record.model_key), code, seconds)
        told = _told(record, code, seconds)
        logger.debug("request done", extra=told)
        failure = "the client went away" if code == CLIENT_CLOSED_REQUEST else f"status {code}" if code >= 500 else ""
        record.trace.end(
            {f"octavo.{name}": value for name, value in told.items() if value is not None}, failure=failure
        )
        if record.audit is not Audit.NONE:
            self._audit.write({"time": _iso(record.began_unix_s), **told}, record.body)

    def _count(self, record: Record, key: str, code: int, seconds: float) -> None:
        self._metrics.requests.labels(key, str(code)).inc()
        self._metrics.request_seconds.labels(key).observe(seconds)
        if record.usage is not None:
            self._metrics.tokens.labels(key, "prompt").inc(record.usage.prompt_tokens)
            self._metrics.tokens.labels(key, "output").inc(record.usage.output_tokens)


def _told(record: Record, code: int, seconds: float) -> dict[str, Any]:
    """Everything but what was said."""
    usage = record.usage
    first_byte = None if record.first_byte is None else round(record.first_byte - record.began, 6)
    return {
        "request_id": record.request_id,
        "trace_id": record.trace.trace_id,
        "who": str(record.key) if record.key is not None else None,
        "client": record.client,
        "model": record.model_key,
        "asked_model": record.asked_model,
        "method": record.method,
        "path": record.path,
        "stream": record.is_stream,
        "status": code,
        "prompt_tokens": usage.prompt_tokens if usage is not None else None,
        "output_tokens": usage.output_tokens if usage is not None else None,
        "seconds": round(seconds, 6),
        "first_byte_seconds": first_byte,
        "held_seconds": round(record.held_s, 6),
        "pod": record.pod or None,
        "attempts": record.attempts,
    }


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
