"""The internal HTTP port: /metrics, /healthz, /readyz."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from octavo_operator.metrics import Metrics


def make_app(metrics: Metrics, *, trouble: Callable[[], str], is_ready: Callable[[], bool]) -> web.Application:
    """`trouble` is a sentence when the operator should be restarted, else empty."""

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_: web.Request) -> web.Response:
        said = trouble()
        return web.Response(status=503 if said else 200, text=said or "ok")

    async def readyz(_: web.Request) -> web.Response:
        return (
            web.Response(text="ok") if is_ready() else web.Response(status=503, text="the first lists are not read yet")
        )

    app = web.Application()
    app.add_routes([web.get("/metrics", show_metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    return app


@asynccontextmanager
async def serving(app: web.Application, *, host: str, port: int) -> AsyncIterator[int]:
    """Listens while inside; yields the port. Without a host on all addresses, but any free port is one of IPv4 alone."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        # Every address family would get a free port of its own.
        site = web.TCPSite(runner, host or (None if port else "0.0.0.0"), port)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
