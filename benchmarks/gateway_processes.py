"""The two servers of `benchmarks.gateway_overhead`, each a process: a fake replica, and a gateway in front of it.

    python -m benchmarks.gateway_processes replica EVENTS INTERVAL_S
    python -m benchmarks.gateway_processes gateway REPLICA_URL

Each prints its port and runs until its standard input ends, which it does when the benchmark does.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable

from aiohttp import web

from octavo_gateway.app import running_gateway
from octavo_gateway.config import GatewayConfig
from octavo_gateway.endpoints import Model, Replica, RoutingTable
from octavo_gateway.metrics import Metrics
from octavo_gateway.static_source import StaticSource

EVENT = (
    b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1,"model":"model","choices":'
    b'[{"index":0,"delta":{"content":" token"},"finish_reason":null}],"usage":null}\n\n'
)
LAST = (
    b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1,"model":"model","choices":[],'
    b'"usage":{"prompt_tokens":32,"completion_tokens":64,"total_tokens":96}}\n\ndata: [DONE]\n\n'
)


async def replica(events: int, interval_s: float) -> None:
    """Answers each chat with so many events, one each interval, as an engine does that is not busy."""

    async def chat(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(events):
            await asyncio.sleep(interval_s)
            await response.write(EVENT)
        await response.write(LAST)
        return response

    async def load(_: web.Request) -> web.Response:
        return web.json_response({"pressure": 0.5, "running": 8, "waiting": 0, "draining": False})

    app = web.Application()
    app.router.add_get("/load", load)
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    await _until_told(runner.addresses[0][1])
    await runner.cleanup()


async def gateway(replica_url: str) -> None:
    """With what the chart turns on: audit lines, prefix affinity, usage."""
    model = Model(
        key="default/model",
        served_names=("model",),
        replicas=(
            Replica(url=replica_url, pod="model-0", ready=True),
            Replica(url=replica_url, pod="model-1", ready=True),
        ),
    )
    sources: list[StaticSource] = []

    def make_source(publish: Callable[[RoutingTable], None], _: Metrics) -> StaticSource:
        sources.append(StaticSource(publish))
        return sources[0]

    config = GatewayConfig(host="127.0.0.1", port=0, internal_port=0, audit_log="/dev/null")
    async with running_gateway(config, make_source, random.Random(1)) as running:
        sources[0].set_models([model])
        await _until_told(running.port)


async def _until_told(port: int) -> None:
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)


def main(argv: list[str]) -> None:
    role, *rest = argv
    asyncio.run(gateway(rest[0]) if role == "gateway" else replica(int(rest[0]), float(rest[1])))


if __name__ == "__main__":
    main(sys.argv[1:])
