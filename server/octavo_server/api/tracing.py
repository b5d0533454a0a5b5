"""Traces for OpenTelemetry: one span a generation request, sent to `--otlp-traces-endpoint` over OTLP/HTTP.

The caller's W3C `traceparent` is continued. Attributes are vLLM's (`gen_ai.…`), so that its dashboards fit; no text of a
request or an answer is ever in a span. Without the flag nothing here runs, and OpenTelemetry is not imported.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aiohttp import web

from octavo_server.api.life import octavo_version
from octavo_server.api.middleware import COUNTED, REQUEST_ID
from octavo_server.engine.request import FinishReason
from octavo_server.errors import ConfigError

if TYPE_CHECKING:
    from octavo_server.api.endpoint import Handler
    from octavo_server.engine.async_engine import AsyncEngine
    from octavo_server.engine.engine import OutputDelta
    from octavo_server.engine.request_stream import RequestStream

SPAN_NAME = "llm_request"
EXPORT_TIMEOUT_S = 5
DEFAULT_PATH = "/v1/traces"


class Tracing:
    """Owns the exporter and its thread; a service of the server."""

    def __init__(self, endpoint: str, model_name: str, engine: AsyncEngine) -> None:
        """Connects to nothing yet.

        Raises:
            ConfigError: the address cannot be used, or OpenTelemetry is not installed.
        """
        self._model_name = model_name
        # Whatever a handler hands to the engine, from whichever endpoint, belongs to the span that its task is in.
        self._current: ContextVar[RequestTrace | None] = ContextVar("request_trace", default=None)
        self._provider, self._tracer, self._propagator = _open(_checked(endpoint))
        engine.on_submit = self._take_stream

    async def start(self, server: web.Server) -> None:
        """Nothing: the exporter's thread runs already."""

    async def stop(self) -> None:
        """Nothing: spans end until the last connection is closed."""

    async def aclose(self) -> None:
        """Sends what is left, for a bounded time."""
        await asyncio.to_thread(self._provider.shutdown)

    async def flush(self) -> None:
        """Sends what has ended."""
        await asyncio.to_thread(self._provider.force_flush)

    @property
    def middleware(self) -> Any:
        """To stand outside of all others, so that it sees the answer's status."""

        @web.middleware
        async def trace(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path not in request.app[COUNTED]:
                return await handler(request)
            with self._span(request) as current:
                response = await handler(request)
                current.status = response.status
                return response

        return trace

    @contextmanager
    def _span(self, request: web.Request) -> Iterator[RequestTrace]:
        from opentelemetry.trace import SpanKind

        parent = self._propagator.extract(carrier=request.headers)
        span = self._tracer.start_span(SPAN_NAME, context=parent, kind=SpanKind.SERVER)
        current = RequestTrace(self._model_name)
        token = self._current.set(current)
        try:
            yield current
        except BaseException as error:
            # A client that went away is no answer of ours; anything else is answered before it comes here.
            current.failure = "the client went away" if isinstance(error, asyncio.CancelledError) else "no answer"
            raise
        finally:
            self._current.reset(token)
            _finish(span, current, request)

    def _take_stream(self, stream: RequestStream) -> None:
        current = self._current.get()
        if current is not None:
            current.take_stream(stream)


class RequestTrace:
    """What is noted of one request while it runs."""

    def __init__(self, model_name: str) -> None:
        self.status: int | None = None
        self.failure: str | None = None
        self._model_name = model_name
        self._began_s = time.monotonic()
        self._first_token_s: float | None = None
        self._streams: list[RequestStream] = []
        self._num_tokens = 0
        self._reasons: list[str] = []

    def take_stream(self, stream: RequestStream) -> None:
        """The handler has handed this to the engine."""
        self._streams.append(stream)
        stream.observer = self._take_delta

    def attributes(self) -> dict[str, Any]:
        """In vLLM's words."""
        found: dict[str, Any] = {
            "gen_ai.response.model": self._model_name,
            "gen_ai.latency.e2e": time.monotonic() - self._began_s,
        }
        requests = [request for stream in self._streams for request in stream.requests]
        if requests:
            params = requests[0].params
            found |= {
                "gen_ai.request.n": params.n,
                "gen_ai.request.temperature": params.temperature,
                "gen_ai.request.top_p": params.top_p,
                "gen_ai.usage.num_sequences": sum(request.params.n for request in requests),
                "gen_ai.usage.prompt_tokens": sum(len(request.prompt_token_ids) for request in requests),
                "gen_ai.usage.completion_tokens": self._num_tokens,
                "gen_ai.response.finish_reasons": self._reasons,
            }
            if params.max_tokens is not None:
                found["gen_ai.request.max_tokens"] = params.max_tokens
        if self._first_token_s is not None:
            found["gen_ai.latency.time_to_first_token"] = self._first_token_s - self._began_s
        return found

    def _take_delta(self, delta: OutputDelta) -> None:
        if delta.tokens and self._first_token_s is None:
            self._first_token_s = time.monotonic()
        self._num_tokens += len(delta.tokens)
        if delta.finish_reason is not None:
            self._reasons.append(FinishReason(delta.finish_reason).value)


def _finish(span: Any, current: RequestTrace, request: web.Request) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attributes(current.attributes())
    span.set_attributes({"http.request.method": request.method, "url.path": request.path})
    span.set_attribute("gen_ai.request.id", request.get(REQUEST_ID, ""))
    if current.status is not None:
        span.set_attribute("http.response.status_code", current.status)
    if current.failure is not None or (current.status or 0) >= 500:
        span.set_status(StatusCode.ERROR, current.failure or f"status {current.status}")
    span.end()


def _checked(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(
            f"--otlp-traces-endpoint {endpoint[:200]} is no address of OTLP over HTTP; "
            f"write http://HOST:4318/v1/traces (gRPC is not supported)"
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
        raise ConfigError("--otlp-traces-endpoint needs OpenTelemetry; pip install 'octavo[otel]'") from error
    resource = Resource.create(
        {"service.name": os.environ.get("OTEL_SERVICE_NAME", "octavo"), "service.version": octavo_version()}
    )
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S)))
    return provider, provider.get_tracer("octavo_server"), TraceContextTextMapPropagator()
