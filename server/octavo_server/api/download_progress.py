"""`/startup` and `/health` of a download that runs by itself, as a server that loads has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from octavo_server.api.life import startup_answer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from octavo_server.engine.startup import StartupProgress

STUCK_S = 300.0


async def serve_progress(
    progress: StartupProgress, port: int, on_open: Callable[[], object], end: asyncio.Event
) -> None:
    """Serves until `end` is set; `on_open` is called once the port listens.

    Raises:
        OSError: the port cannot be opened.
    """

    async def startup(_: web.Request) -> web.Response:
        return web.json_response(startup_answer(progress))

    async def health(_: web.Request) -> web.Response:
        is_stuck = progress.idle_s() > STUCK_S
        return web.json_response({"status": "stuck" if is_stuck else "ok"}, status=503 if is_stuck else 200)

    app = web.Application()
    app.add_routes([web.get("/startup", startup), web.get("/health", health)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, None, port).start()
        on_open()
        await end.wait()
    finally:
        await runner.cleanup()
