"""The life of a serving process: port first, then the model; drain on SIGTERM; exit codes that mean something.

bind → start the engine → serve → (SIGTERM: drain | engine dead or stuck: fail) → stop the engine → exit code
"""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from octavo_server.api.app import make_app
from octavo_server.api.batch_service import BatchService
from octavo_server.api.connection import Runner, Service
from octavo_server.api.state import ServerState
from octavo_server.api.tracing import Tracing
from octavo_server.engine.async_engine import AsyncEngine, EngineState
from octavo_server.engine.placement import make_host
from octavo_server.errors import ConfigError, EngineStuckError, StartupError
from octavo_server.machine import resident_bytes
from octavo_server.metrics import ServerMetrics
from octavo_server.plan.table import size
from octavo_server.sources.uri import HubModel, parse_source

if TYPE_CHECKING:
    from octavo_server.config import EngineConfig, ServerConfig

logger = logging.getLogger(__name__)

DRAIN_TICK_S = 0.02
FLUSH_TIMEOUT_S = 2.0
"""For the last error events to reach their clients."""


class EndNow(Exception):
    """A second SIGTERM: a decision, not an error."""


def make_state(engine_config: EngineConfig, server_config: ServerConfig) -> ServerState:
    """The parts of a server that has not begun to load."""
    names = server_config.served_model_name or (default_model_name(engine_config.model),)
    metrics = ServerMetrics(names[0], lambda: engine.snapshot)
    engine = AsyncEngine(
        make_host(engine_config, where=server_config.engine_process, log_level=server_config.log_level),
        on_records=metrics.record,
        max_num_queued_reqs=server_config.max_num_queued_reqs,
        stall_timeout_s=server_config.stall_timeout,
    )
    source = parse_source(engine_config.model)
    return ServerState(
        config=server_config,
        engine=engine,
        metrics=metrics,
        model_names=names,
        model_root=source.repository if isinstance(source, HubModel) else "",
        engine_settings={**asdict(engine_config), "engine_process": server_config.engine_process},
    )


def default_model_name(model: str) -> str:
    """What clients call the model when nobody said: the path or the name on the hub, of a GGUF file its own name."""
    source = parse_source(model)
    if isinstance(source, Path):
        return source.stem if source.suffix.lower() == ".gguf" else str(source)
    return source.name


async def serve(state: ServerState) -> bool:
    """Serves until SIGTERM or SIGINT, or until the engine dies.

    Returns:
        Whether the engine has ended; False where its thread was left behind in the middle of something.

    Raises:
        StartupError: the port cannot be opened, or the model cannot be loaded.
        OctavoError: the engine died.
        EndNow: a second signal came.
    """
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    runner = make_runner(state)
    await runner.setup()
    try:
        await listen(runner, state.config)
        state.engine.start()
        await _run_until_end(state, signals)
    except EndNow:
        # No last words: whoever sent the second signal waits for the end alone.
        await state.engine.aclose(at_once=True)
        raise
    except BaseException as error:
        await state.engine.aclose(at_once=isinstance(error, EngineStuckError))
        await runner.cleanup()
        raise
    stopped = await state.engine.aclose()
    await runner.cleanup()
    return stopped


def make_runner(state: ServerState) -> web.AppRunner:
    """What runs the application; not yet set up."""
    services: list[Service] = []
    if state.config.data_dir is not None:
        state.batches = BatchService(state)
        services.append(state.batches)
    if state.config.otlp_traces_endpoint is not None:
        state.tracing = Tracing(state.config.otlp_traces_endpoint, state.model_names[0], state.engine)
        services.append(state.tracing)
    # Cancelling handlers of clients that went away is what frees their blocks.
    return Runner(
        make_app(state), services, handler_cancellation=True, access_log=None, shutdown_timeout=FLUSH_TIMEOUT_S
    )


async def listen(runner: web.AppRunner, config: ServerConfig) -> int:
    """Opens the port; returns it.

    Raises:
        ConfigError: it cannot be opened.
    """
    site = web.TCPSite(runner, config.host, config.port, ssl_context=_ssl_context(config))
    try:
        await site.start()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"cannot listen on {config.host} port {config.port}: {reason}; free it or choose another with --port"
        ) from error
    port = runner.addresses[0][1]
    logger.info("listening on %s:%d", config.host, port)
    return int(port)


async def _run_until_end(state: ServerState, signals: asyncio.Queue[int]) -> None:
    ends = asyncio.create_task(signals.get())
    dies = asyncio.create_task(state.engine.wait_until(EngineState.DEAD))
    others = [asyncio.create_task(_announce_ready(state)), asyncio.create_task(state.engine.watch())]
    try:
        await asyncio.wait({ends, dies}, return_when=asyncio.FIRST_COMPLETED)
        if dies.done():
            await _let_errors_out(state)
            assert state.engine.failure is not None
            raise state.engine.failure
        await _drain(state, signals, dies)
    finally:
        for task in (ends, dies, *others):
            task.cancel()


async def _announce_ready(state: ServerState) -> None:
    if await state.engine.wait_until(EngineState.READY, EngineState.DEAD) is EngineState.READY:
        for stage, seconds in state.engine.progress.stage_seconds.items():
            state.metrics.record_startup(stage, seconds)
        total = sum(state.engine.progress.stage_seconds.values())
        names = ", ".join(state.model_names)
        logger.info(
            "ready after %.1f s, serving %s, idle memory of the serving process %s",
            total,
            names,
            size(resident_bytes()),
        )
        if not state.draining:
            formats = state.formats
            logger.info("tool calls are read as %s, reasoning as %s", formats.tools_name, formats.reasoning_name)


async def _drain(state: ServerState, signals: asyncio.Queue[int], dies: asyncio.Task[EngineState]) -> None:
    """Lets what runs finish, then ends the rest with an error event."""
    state.draining = True
    timeout_s = state.config.shutdown_timeout
    logger.info("draining: %d requests have %.0f s to finish", state.num_active, timeout_s)
    again = asyncio.create_task(signals.get())
    try:
        deadline = asyncio.get_running_loop().time() + timeout_s
        while state.num_active and asyncio.get_running_loop().time() < deadline and not dies.done():
            await asyncio.wait({again}, timeout=DRAIN_TICK_S)
            if again.done():
                raise EndNow
        if state.num_active:
            logger.warning("%d requests did not finish in time and are ended", state.num_active)
            state.engine.fail_all(
                f"the server is shutting down and the request did not finish within {timeout_s:g} s; send it again"
            )
            await _let_errors_out(state)
    finally:
        again.cancel()


async def _let_errors_out(state: ServerState) -> None:
    """Waits, for a bounded time, until the handlers have written their last words."""
    deadline = asyncio.get_running_loop().time() + FLUSH_TIMEOUT_S
    while state.num_active and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(DRAIN_TICK_S)


def _ssl_context(config: ServerConfig) -> ssl.SSLContext | None:
    if config.ssl_certfile is None:
        if config.ssl_keyfile is not None:
            raise ConfigError("--ssl-keyfile needs --ssl-certfile")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
    except (OSError, ssl.SSLError) as error:
        raise StartupError("SpecInvalid", f"cannot read --ssl-certfile {config.ssl_certfile}: {error}") from error
    return context
