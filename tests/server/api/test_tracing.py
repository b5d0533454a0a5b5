"""Traces, as a collector receives them: a fake one that speaks OTLP over HTTP, and OpenTelemetry's own parser."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from octavo_server.api.server import make_runner, make_state
from octavo_server.config import EngineConfig, ServerConfig
from octavo_server.errors import ConfigError
from octavo_testing.server import NAME, Server, a_chat, a_completion, fake_server

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """Keeps the spans that were sent to it."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resource: dict[str, Any] = {}
        self.paths: list[str] = []

    async def take(self, request: web.Request) -> web.Response:
        self.paths.append(request.path)
        message = ExportTraceServiceRequest()
        message.ParseFromString(await request.read())
        for resource in message.resource_spans:
            self.resource = attributes(resource.resource)
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return web.Response(content_type="application/x-protobuf")


def attributes(of: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return [plain(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {item.key: plain(item.value) for item in of.attributes}


@asynccontextmanager
async def traced(tokenizer: Path, path: str = "/v1/traces", **config: Any) -> AsyncIterator[tuple[Server, Collector]]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/{path:.*}", collector.take)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}{path}"
    try:
        async with fake_server(tokenizer, otlp_traces_endpoint=endpoint, **config) as server:
            yield server, collector
    finally:
        await runner.cleanup()


async def spans(server: Server, collector: Collector) -> list[Span]:
    assert server.state.tracing is not None
    await server.state.tracing.flush()
    return collector.spans


async def test_a_request_is_one_server_span_of_its_callers_trace(tokenizer_folder: Path) -> None:
    async with traced(tokenizer_folder) as (server, collector):
        answer = await server.post(
            "/v1/chat/completions",
            a_chat("a secret question", max_tokens=5, ignore_eos=True, top_p=0.5, temperature=0.7),
            headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "r1"},
        )
        (span,) = await spans(server, collector)

    found, usage = attributes(span), answer.json["usage"]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert (span.name, span.kind, span.status.code) == ("llm_request", Span.SPAN_KIND_SERVER, Status.STATUS_CODE_UNSET)
    first_token_s, e2e_s = found.pop("gen_ai.latency.time_to_first_token"), found.pop("gen_ai.latency.e2e")
    assert 0 < first_token_s <= e2e_s < 60
    assert found.pop("gen_ai.request.temperature") == pytest.approx(0.7)
    assert found == {
        "gen_ai.response.model": NAME,
        "gen_ai.request.id": "r1",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.n": 1,
        "gen_ai.request.top_p": 0.5,
        "gen_ai.usage.num_sequences": 1,
        "gen_ai.usage.prompt_tokens": usage["prompt_tokens"],
        "gen_ai.usage.completion_tokens": 5,
        "gen_ai.response.finish_reasons": ["length"],
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
    }
    assert collector.resource["service.name"] == "octavo"
    assert b"secret" not in span.SerializeToString()


async def test_streams_and_several_outputs_are_counted_whole(tokenizer_folder: Path) -> None:
    async with traced(tokenizer_folder) as (server, collector):
        body = a_completion(["a", "b"], n=2, temperature=1, max_tokens=3, ignore_eos=True, stream=True)
        await server.post("/v1/completions", body)
        await server.post("/v1/embeddings", {"model": NAME, "input": [[5, 6], [7]]})
        stream, vectors = await spans(server, collector)

    found = attributes(stream)
    assert found["gen_ai.usage.num_sequences"] == 4
    assert found["gen_ai.usage.completion_tokens"] == 12
    assert found["gen_ai.response.finish_reasons"] == ["length"] * 4
    assert attributes(vectors)["gen_ai.usage.prompt_tokens"] == 3
    # Without a caller's trace each begins its own.
    assert stream.trace_id != vectors.trace_id
    assert stream.parent_span_id == b""


async def test_an_error_is_in_the_span_and_ours_is_marked(tokenizer_folder: Path) -> None:
    async with traced(tokenizer_folder) as (server, collector):
        await server.post("/v1/completions", a_completion(temperature=9))
        server.state.draining = True
        await server.post("/v1/completions", a_completion())
        await server.get("/health")
        theirs, ours = await spans(server, collector)

    assert attributes(theirs)["http.response.status_code"] == 400
    assert theirs.status.code == Status.STATUS_CODE_UNSET
    assert attributes(ours)["http.response.status_code"] == 503
    assert ours.status.code == Status.STATUS_CODE_ERROR


async def test_a_client_that_went_away_is_said(tokenizer_folder: Path) -> None:
    async with traced(tokenizer_folder) as (server, collector):
        assert server.fake is not None
        server.fake.runner.gate.clear()
        task = asyncio.create_task(server.post("/v1/completions", a_completion()))
        await server.until(lambda: server.state.engine.num_unfinished == 1)
        task.cancel()
        await server.until(lambda: server.state.num_active == 0)
        server.fake.runner.open()
        (span,) = await spans(server, collector)

    assert (span.status.code, span.status.message) == (Status.STATUS_CODE_ERROR, "the client went away")


async def test_what_has_ended_is_sent_before_the_server_is_gone(tokenizer_folder: Path) -> None:
    async with traced(tokenizer_folder, path="") as (server, collector):
        await server.post("/v1/completions", a_completion())
        assert collector.spans == []
    assert len(collector.spans) == 1
    assert collector.paths == ["/v1/traces"]


@pytest.mark.parametrize("endpoint", ["collector:4317", "grpc://collector:4317", "http://"])
def test_an_address_that_cannot_be_used_ends_the_start(endpoint: str) -> None:
    state = make_state(EngineConfig(model="m"), ServerConfig(otlp_traces_endpoint=endpoint))

    with pytest.raises(ConfigError, match=r"write http://HOST:4318/v1/traces"):
        make_runner(state)


def test_without_opentelemetry_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    state = make_state(EngineConfig(model="m"), ServerConfig(otlp_traces_endpoint="http://collector:4318"))

    with pytest.raises(ConfigError, match=r"octavo\[otel\]"):
        make_runner(state)
