"""W3C trace context: each request belongs to its caller's trace, or begins one, and tells the replica of it.

With ``--otlp-traces-endpoint`` each request is a span of its own, sent to an OpenTelemetry collector over OTLP/HTTP;
OpenTelemetry is imported only then. No text of a request or an answer is ever in a span.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

from multidict import CIMultiDict

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
SPAN_NAME = "gateway_request"
EXPORT_TIMEOUT_S = 5
DEFAULT_PATH = "/v1/traces"

Attributes = Mapping[str, str | int | float | bool]
# Later versions may append fields; ours reads the first four (W3C Trace Context, 3.2.4).
_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?P<trace>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


class TracingUnavailable(Exception):
    """The endpoint cannot be used, or OpenTelemetry is not installed; the process ends with it."""


class Trace(Protocol):
    """One request's part of its trace."""

    @property
    def trace_id(self) -> str: ...

    def inject(self, headers: CIMultiDict[str]) -> None:
        """Tell the replica of it."""
        ...

    def end(self, attributes: Attributes, *, failure: str) -> None:
        """``failure`` is empty where there was none."""
        ...


class Tracing(Protocol):
    def begin(self, headers: Mapping[str, str]) -> Trace: ...

    async def close(self) -> None:
        """Send what is left, for a bounded time."""
        ...


class PassedTrace:
    """The caller's context as it came, or a new one; nobody records it here."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        given = headers.get(TRACEPARENT, "").strip()
        parent = _PARENT.fullmatch(given) if len(given) <= 512 else None
        self._made = _new_parent() if parent is None else ""
        self.trace_id = parent["trace"] if parent is not None else self._made.split("-")[1]

    def inject(self, headers: CIMultiDict[str]) -> None:
        if self._made:
            headers[TRACEPARENT] = self._made
            # A state without a parent that can be read belongs to nothing (3.3).
            headers.popall(TRACESTATE, None)

    def end(self, attributes: Attributes, *, failure: str) -> None:
        """Nothing to record."""


def _new_parent() -> str:
    """A trace's id of 16 bytes and a span's of 8, drawn at once."""
    drawn = secrets.token_hex(24)
    return f"00-{drawn[:32]}-{drawn[32:]}-01"


class PassingTracing:
    def begin(self, headers: Mapping[str, str]) -> Trace:
        return PassedTrace(headers)

    async def close(self) -> None:
        """Nothing is left."""


class SpanTracing:
    """Owns the exporter and its thread."""

    def __init__(self, endpoint: str) -> None:
        """Connects to nothing yet; raises TracingUnavailable."""
        self._provider, self._tracer, self._propagator = _open(_checked(endpoint))

    def begin(self, headers: Mapping[str, str]) -> Trace:
        from opentelemetry.trace import SpanKind

        parent = self._propagator.extract(carrier=headers)
        return SpanTrace(self._tracer.start_span(SPAN_NAME, context=parent, kind=SpanKind.SERVER), self._propagator)

    async def close(self) -> None:
        await asyncio.to_thread(self._provider.shutdown)

    async def flush(self) -> None:
        await asyncio.to_thread(self._provider.force_flush)


class SpanTrace:
    def __init__(self, span: Any, propagator: Any) -> None:
        self._span = span
        self._propagator = propagator

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    def inject(self, headers: CIMultiDict[str]) -> None:
        from opentelemetry.trace import set_span_in_context

        for name in (TRACEPARENT, TRACESTATE):
            headers.popall(name, None)
        self._propagator.inject(headers, context=set_span_in_context(self._span))

    def end(self, attributes: Attributes, *, failure: str) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_attributes(dict(attributes))
        if failure:
            self._span.set_status(StatusCode.ERROR, failure)
        self._span.end()


def open_tracing(endpoint: str) -> PassingTracing | SpanTracing:
    return SpanTracing(endpoint) if endpoint else PassingTracing()


def _checked(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise TracingUnavailable(
            f"--otlp-traces-endpoint {endpoint[:200]} is no address of OTLP over HTTP; write http://HOST:4318/v1/traces"
        )
    return parts._replace(path=DEFAULT_PATH).geturl() if parts.path in ("", "/") else endpoint


def _open(endpoint: str) -> tuple[Any, Any, Any]:
    """Provider, tracer and propagator."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError as error:
        raise TracingUnavailable("--otlp-traces-endpoint needs OpenTelemetry; pip install 'octavo[otel]'") from error
    name = os.environ.get("OTEL_SERVICE_NAME", "octavo-gateway")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S)))
    return provider, provider.get_tracer("octavo_gateway"), TraceContextTextMapPropagator()
