"""Trace context as W3C has it, and spans as a collector receives them, read by OpenTelemetry's own parser."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from octavo_gateway.tracing import PassedTrace, TracingUnavailable, open_tracing
from octavo_testing.gateway import CHAT, a_gateway, a_model, an_upstream, answering

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{PARENT}-01"


def sent(**headers: str) -> tuple[str, CIMultiDict[str]]:
    """The trace's id, and what a replica is told."""
    trace, told = PassedTrace(headers), CIMultiDict(headers)
    trace.inject(told)
    return trace.trace_id, told


def test_a_callers_context_passes_as_it_is() -> None:
    trace_id, told = sent(traceparent=GIVEN, tracestate="a=1")

    assert trace_id == TRACE
    assert dict(told) == {"traceparent": GIVEN, "tracestate": "a=1"}


@pytest.mark.parametrize(
    "given",
    [
        "",
        "nonsense",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}",
    ],
)
def test_a_context_that_is_none_is_replaced_by_one_that_opentelemetry_takes(given: str) -> None:
    trace_id, told = sent(traceparent=given, tracestate="a=1")

    assert re.fullmatch(f"00-{trace_id}-[0-9a-f]{{16}}-01", told["traceparent"])
    assert trace_id != TRACE
    assert "tracestate" not in told
    context = TraceContextTextMapPropagator().extract(carrier=dict(told))
    assert len(context) == 1


async def test_the_replica_is_told_and_each_request_without_a_trace_begins_its_own() -> None:
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        await bench.send("POST", CHAT, json={"model": "m"}, headers={"traceparent": GIVEN})
        for _ in range(2):
            await bench.ask()

    passed, one, two = (headers["traceparent"] for headers in upstream.headers)
    assert passed == GIVEN
    assert one != two


@dataclass
class Collector:
    spans: list[Span] = field(default_factory=list)
    endpoint: str = ""

    async def take(self, request: web.Request) -> web.Response:
        assert request.path == "/v1/traces"
        message = ExportTraceServiceRequest()
        message.ParseFromString(await request.read())
        self.spans += [
            span for resource in message.resource_spans for scope in resource.scope_spans for span in scope.spans
        ]
        return web.Response(content_type="application/x-protobuf")


@contextlib.asynccontextmanager
async def a_collector() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/{path:.*}", collector.take)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    collector.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield collector
    finally:
        await runner.cleanup()


def attributes(span: Span) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in span.attributes}


async def test_a_request_is_a_span_between_its_caller_and_the_replica() -> None:
    async with a_collector() as collector, an_upstream() as upstream:
        async with a_gateway(a_model("m", upstream.replica("m-1")), otlp_traces_endpoint=collector.endpoint) as bench:
            body = {"model": "m", "messages": [{"role": "user", "content": "a secret"}]}
            await bench.send("POST", CHAT, json=body, headers={"traceparent": GIVEN, "X-Request-Id": "r-1"})
            upstream.handler = answering("x", status=500)
            await bench.ask()
        good, bad = collector.spans

    told = upstream.headers[0]["traceparent"]
    assert (good.name, good.trace_id.hex(), good.parent_span_id.hex()) == ("gateway_request", TRACE, PARENT)
    assert told == f"00-{TRACE}-{good.span_id.hex()}-01"
    assert good.kind == Span.SPAN_KIND_SERVER
    found = attributes(good)
    assert (found["octavo.request_id"], found["octavo.model"], found["octavo.pod"]) == ("r-1", "default/m", "m-1")
    assert found["octavo.status"] == 200
    assert "secret" not in str(good)
    assert (good.status.code, bad.status.code) == (Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR)
    assert bad.trace_id != good.trace_id


@pytest.mark.parametrize("endpoint", ["localhost:4317", "grpc://x:4317", "http://"])
def test_an_endpoint_that_cannot_be_used_is_told(endpoint: str) -> None:
    with pytest.raises(TracingUnavailable, match="no address of OTLP over HTTP"):
        open_tracing(endpoint)


def test_opentelemetry_is_not_imported_unless_it_is_wanted() -> None:
    code = "import sys, octavo_gateway.app; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"

    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
