"""A server of a few lines with the life of `octavo serve`: /startup, /ready, a streamed chat, drain on SIGTERM.

Run by the tests of local mode as `fake_server.py MODEL --port=N …`. What the model's file says decides how it fares:
`ok`, `bad` (ends with a termination log), `slow` (stays in loading_weights), `crash` (ends without a word).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from aiohttp import web

CHUNKS = 3


def main() -> int:
    mode = Path(sys.argv[1]).read_text().strip()
    if mode == "bad":
        words = json.dumps({"reason": "UnsupportedArchitecture", "message": "no engine for BadForCausalLM"})
        Path(os.environ["OCTAVO_TERMINATION_LOG"]).write_text(words + "\n")
        return 1
    if mode == "crash":
        sys.stderr.write("the last line of the log\n")
        return 3
    port = next(int(arg.partition("=")[2]) for arg in sys.argv if arg.startswith("--port="))
    asyncio.run(serve(port, mode))
    return 0


async def serve(port: int, mode: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    is_loading = mode == "slow"

    async def ready(_: web.Request) -> web.Response:
        return web.json_response({}, status=503 if stop.is_set() or is_loading else 200)

    async def startup(_: web.Request) -> web.Response:
        stage = "loading_weights" if is_loading else "ready"
        return web.json_response({"stage": stage, "bytes": 1_000_000_000, "total_bytes": 2_000_000_000})

    async def load(_: web.Request) -> web.Response:
        return web.json_response({"pressure": 0.0, "running": 0, "waiting": 0, "draining": stop.is_set()})

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text='octavo_kv_pressure_ratio{model_name="tiny"} 0.5\n')

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if not body.get("stream"):
            return web.json_response({"model": body["model"], "pid": os.getpid(), "env": dict(os.environ)})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(CHUNKS):
            delta = {"choices": [{"index": 0, "delta": {"content": f"{number} "}, "finish_reason": None}]}
            await response.write(b"data: " + json.dumps(delta).encode() + b"\n\n")
            await asyncio.sleep(float(body.get("pause_s", 0.01)))
        await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_get("/ready", ready)
    app.router.add_get("/startup", startup)
    app.router.add_get("/health", lambda _: _ok())
    app.router.add_get("/load", load)
    app.router.add_get("/metrics", metrics)
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=30)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await stop.wait()
    await runner.cleanup()


async def _ok() -> web.Response:
    return web.json_response({})


if __name__ == "__main__":
    sys.exit(main())
