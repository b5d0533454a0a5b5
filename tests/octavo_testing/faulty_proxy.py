"""Stands between an operator and its API server and does to its requests what a bad day does.

What is not disturbed is passed on as it is. The test itself asks the API server directly and is never disturbed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import yaml
from aiohttp import web

from octavo_operator.kube.kinds import resource_of
from octavo_testing.apiserver import ApiServer

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
PASSED_ON = ("Authorization", "Content-Type", "Accept", "User-Agent")
LOOK_S = 0.1
"""How soon a watch that runs learns of a disturbance."""
EXPIRED = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request, as far as a fault needs to know it."""

    method: str
    path: str
    is_watch: bool

    @property
    def resource(self) -> str:
        """Plural of what it is about, whatever the subresource."""
        return resource_of(self.path).partition("/")[0]

    @property
    def is_write(self) -> bool:
        """Of something that lasts: leases, which live of writes, and events are left out."""
        return self.method in WRITES and self.resource not in ("leases", "events")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An answer in the API server's place."""

    status: int
    reason: str
    message: str = "refused by the test"
    headers: Mapping[str, str] = field(default_factory=dict)

    def answer(self) -> web.Response:
        said = {"code": self.status, "reason": self.reason, "message": self.message}
        body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", **said}
        return web.json_response(body, status=self.status, headers=self.headers)


class FaultyProxy:
    """The disturbances are attributes that a test sets; all of them are off at first."""

    def __init__(self, server: ApiServer) -> None:
        self.fault: Callable[[Asked], Refusal | None] = lambda _: None
        """What is refused."""
        self.cut_after_s = float("inf")
        """Watches break after so many seconds."""
        self.on_write: Callable[[Asked], None] = lambda _: None
        """Told of each write that the API server took, before the operator hears of it."""
        self.asked: list[tuple[float, Asked]] = []
        """Everything that was asked, with the time on the monotonic clock."""
        self.url = ""
        self._server = server
        self._silenced_at = self._expired_at = float("-inf")
        self._tls = ssl.create_default_context(cafile=str(server.ca_file))

    def silence_watches(self) -> None:
        """All open watches stay open and tell nothing any more."""
        self._silenced_at = time.monotonic()

    def expire_watches(self) -> None:
        """All open watches are told that their place in history is forgotten."""
        self._expired_at = time.monotonic()

    def kubeconfig(self, folder: Path) -> Path:
        config = yaml.safe_load(self._server.kubeconfig.read_text())
        config["clusters"][0]["cluster"] = {"server": self.url}
        path = folder / "faulty.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """In a thread of its own."""
        is_open, stop = threading.Event(), asyncio.Event()
        loops: list[asyncio.AbstractEventLoop] = []

        async def serve() -> None:
            loops.append(asyncio.get_running_loop())
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
                app = web.Application(client_max_size=2**24)
                app.router.add_route("*", "/{path:.*}", functools.partial(self._handle, session))
                runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
                await runner.setup()
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
                is_open.set()
                await stop.wait()
                await runner.cleanup()
            # Encrypted connections say goodbye a moment after their session is closed.
            await asyncio.sleep(LOOK_S)

        thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        thread.start()
        assert is_open.wait(10)
        try:
            yield
        finally:
            loops[0].call_soon_threadsafe(stop.set)
            thread.join(20)

    async def _handle(self, session: aiohttp.ClientSession, request: web.Request) -> web.StreamResponse:
        asked = Asked(method=request.method, path=request.path, is_watch=request.query.get("watch") == "true")
        self.asked.append((time.monotonic(), asked))
        refusal = self.fault(asked)
        if refusal is not None:
            return refusal.answer()
        headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
        url, body = f"{self._server.url}{request.raw_path}", await request.read() or None
        try:
            async with session.request(request.method, url, data=body, headers=headers, ssl=self._tls) as upstream:
                if asked.is_watch:
                    return await self._stream(request, upstream)
                data = await upstream.read()
        except aiohttp.ClientError:
            # As if there were nothing between the two.
            return _break(request)
        if asked.is_write and upstream.status < 300:
            self.on_write(asked)
        return web.Response(body=data, status=upstream.status, content_type=upstream.content_type)

    async def _stream(self, request: web.Request, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=upstream.status, headers={"Content-Type": "application/json"})
        await response.prepare(request)
        begun = time.monotonic()
        while True:
            try:
                chunk = await asyncio.wait_for(upstream.content.readany(), LOOK_S)
            except TimeoutError:
                chunk = None
            if self._expired_at > begun:
                await response.write(json.dumps({"type": "ERROR", "object": EXPIRED}).encode() + b"\n")
                return response
            if time.monotonic() - begun > self.cut_after_s:
                return _break(request)
            if self._silenced_at > begun:
                await asyncio.sleep(LOOK_S)
            elif chunk == b"":
                return response
            elif chunk is not None:
                await response.write(chunk)


def _break(request: web.Request) -> web.Response:
    """The connection ends without a word."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
