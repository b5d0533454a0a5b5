"""Builders for the gateway's tests: values, real upstreams on loopback, and a running gateway in front of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDictProxy

from octavo_gateway.app import Gateway, running_gateway
from octavo_gateway.config import GatewayConfig
from octavo_gateway.endpoints import Model, Replica, RoutingTable
from octavo_gateway.errors import KubeApiError
from octavo_gateway.metrics import Metrics
from octavo_gateway.quota_loops import QuotaBackend
from octavo_gateway.static_source import StaticSource

CHAT = "/v1/chat/completions"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def a_replica(name: str = "pod-0", *, url: str = "", ready: bool = True, **fields: Any) -> Replica:
    return Replica(url=url or f"http://{name}:8000", pod=name, ready=ready, **fields)


def a_model(name: str = "m", *replicas: Replica, **fields: Any) -> Model:
    return Model(key=f"default/{name}", replicas=replicas, **{"served_names": (name,), **fields})


@dataclass
class Upstream:
    """A real HTTP server in the place of a replica; ``handler`` answers its chat route and may be exchanged."""

    handler: Handler
    url: str = ""
    load: dict[str, Any] = field(
        default_factory=lambda: {"pressure": 0.0, "running": 0, "waiting": 0, "draining": False}
    )
    bodies: list[bytes] = field(default_factory=list)
    headers: list[CIMultiDictProxy[str]] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a handler is cancelled, because whoever asked went away."""
    runner: web.AppRunner | None = None

    @property
    def requests(self) -> int:
        return len(self.bodies)

    def replica(self, name: str = "", **fields: Any) -> Replica:
        return a_replica(name or self.url.rpartition(":")[2], url=self.url, **fields)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(request.headers)
        self.bodies.append(await request.read())
        try:
            return await self.handler(request)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def stop(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()
            self.runner = None


@contextlib.asynccontextmanager
async def an_upstream(handler: Handler | None = None, *, port: int = 0) -> AsyncIterator[Upstream]:
    upstream = Upstream(handler or answering("hello"))

    async def load(_: web.Request) -> web.Response:
        return web.json_response(upstream.load)

    app = web.Application(client_max_size=2**30)
    app.router.add_get("/load", load)
    app.router.add_route("*", "/{path:.+}", upstream.answer)
    upstream.runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
    await upstream.runner.setup()
    await web.TCPSite(upstream.runner, "127.0.0.1", port).start()
    upstream.url = f"http://127.0.0.1:{upstream.runner.addresses[0][1]}"
    try:
        yield upstream
    finally:
        await upstream.stop()


@contextlib.asynccontextmanager
async def an_upstream_saying(answer: bytes) -> AsyncIterator[Replica]:
    """A replica that answers each request with these bytes, whatever they are, and closes the connection."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield a_replica("raw", url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    finally:
        server.close()


def answering(text: str, *, status: int = 200, headers: dict[str, str] | None = None) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"text": text}, status=status, headers=headers)

    return handler


def streaming(gate: asyncio.Queue[bytes | None]) -> Handler:
    """An event stream that sends what the test puts into ``gate``; None ends it."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while (piece := await gate.get()) is not None:
            await response.write(piece)
        return response

    return handler


def hanging_up() -> Handler:
    """Reads the request and closes the connection without an answer, as a crash does."""

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        raise ConnectionResetError

    return handler


@dataclass(frozen=True)
class Answer:
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, which must have all four keys."""
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    @property
    def events(self) -> list[str]:
        """The data of each server-sent event."""
        return [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]


def a_request(
    body: bytes = b'{"model": "m"}',
    *headers: str,
    path: str = CHAT,
    method: str = "POST",
    version: str = "HTTP/1.1",
    announced: bool = True,
) -> bytes:
    """A request as it goes over the wire; the connection ends with its answer unless a header says otherwise."""
    lines = [f"{method} {path} {version}", "Host: x", *headers]
    if not any(header.startswith("Connection:") for header in headers):
        lines.append("Connection: close")
    if announced:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def read_answer(raw: bytes) -> tuple[int, Any]:
    """Status and JSON of the first answer in what came over the wire."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.JSONDecoder().raw_decode(rest.decode())[0]


@dataclass
class WakingSource(StaticSource):
    """A static source that can be woken; refuses as long as ``refusal`` is set."""

    publish: Callable[[RoutingTable], None]
    woken: list[str] = field(default_factory=list)
    refusal: KubeApiError | None = None
    secrets: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.publish, secrets=self.secrets)

    async def wake(self, model: Model) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.woken.append(model.key)


@dataclass
class Bench:
    """A running gateway, its source, and a client of it."""

    gateway: Gateway
    source: WakingSource
    client: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"

    def set_models(self, *models: Model) -> None:
        self.source.set_models(models)

    async def ask(self, model: str = "m", **fields: Any) -> Answer:
        """One chat request, its answer read whole."""
        return await self.send("POST", CHAT, json={"model": model, **fields})

    async def send(self, method: str, path: str, **options: Any) -> Answer:
        async with self.client.request(method, self.url + path, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def talk(self, *pieces: bytes, ends: bool = False, within_s: float = 5.0) -> bytes:
        """Send bytes as they are over a connection of their own; all that comes back until the gateway closes it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            if ends:
                writer.write_eof()
            async with asyncio.timeout(within_s):
                return await reader.read()
        finally:
            writer.close()

    async def internal(self, path: str) -> tuple[int, str]:
        async with self.client.get(f"http://127.0.0.1:{self.gateway.internal_port}{path}") as response:
            return response.status, await response.text()

    async def metric(self, line: str) -> float:
        """The value of one series, given as it is written; 0 where it is absent."""
        _, text = await self.internal("/metrics")
        return next((float(each.rpartition(" ")[2]) for each in text.splitlines() if each.startswith(line + " ")), 0.0)


@contextlib.asynccontextmanager
async def a_gateway(
    *models: Model,
    secrets: Mapping[str, Mapping[str, bytes]] | None = None,
    quota_backend: QuotaBackend | None = None,
    **settings: Any,
) -> AsyncIterator[Bench]:
    sources: list[WakingSource] = []

    def make_source(publish: Callable[[RoutingTable], None], _: Metrics) -> WakingSource:
        sources.append(WakingSource(publish, secrets=secrets or {}))
        sources[0].quota_backend = quota_backend
        return sources[0]

    config = GatewayConfig(**{"host": "127.0.0.1", "port": 0, "internal_port": 0, "audit_log": "", **settings})
    async with (
        running_gateway(config, make_source, random.Random(7)) as gateway,
        aiohttp.ClientSession() as client,
    ):
        sources[0].set_models(models)
        yield Bench(gateway, sources[0], client)


async def until(condition: Callable[[], bool], *, within_s: float = 5.0) -> None:
    """Wait for something that the gateway's own tasks bring about."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)
