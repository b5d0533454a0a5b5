"""What probes, scrapers and the control plane read. Open without a key, and answered from the first moment."""

from __future__ import annotations

import asyncio
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from aiohttp import web

from octavo_server.api.endpoint import Answer, Endpoint, json_answer
from octavo_server.api.error_response import ApiError
from octavo_server.api.json_schema import boolean, integer, number, record, text
from octavo_server.api.state import STATE
from octavo_server.engine.async_engine import EngineState
from octavo_server.environment import environment
from octavo_server.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from octavo_server.engine.startup import StartupProgress


async def health(http: web.Request) -> web.Response:
    """200 while loading makes progress or steps end; 503 when stuck or dead."""
    engine = http.app[STATE].engine
    if engine.is_healthy:
        return web.json_response({"status": "ok"})
    if engine.state is EngineState.READY:
        raise ApiError(503, "the engine is stuck: work is there, but no step ends", code="engine_stuck")
    if engine.state is EngineState.LOADING:
        raise ApiError(503, "loading is stuck: nothing has moved for too long", code="loading_stuck")
    raise ApiError(503, "the engine is dead", code="engine_dead")


async def ready(http: web.Request) -> web.Response:
    """200 when loaded and not draining."""
    http.app[STATE].ready_engine()
    return web.json_response({"status": "ready"})


async def startup(http: web.Request) -> web.Response:
    """How far the start has come; always 200."""
    return web.json_response(startup_answer(http.app[STATE].engine.progress))


def startup_answer(progress: StartupProgress) -> dict[str, object]:
    """What `/startup` says; a download that runs by itself says the same."""
    return {
        "stage": progress.stage,
        "bytes": progress.bytes,
        "total_bytes": progress.total_bytes,
        "bytes_per_second": round(progress.bytes_per_second()),
        "idle_seconds": round(progress.idle_s(), 1),
        "stage_seconds": progress.stage_seconds,
        "message": progress.message,
    }


async def load(http: web.Request) -> web.Response:
    """How busy the server is; what the autoscaler and the gateway read."""
    state = http.app[STATE]
    now = state.engine.snapshot
    return web.json_response(
        {
            "pressure": now.pressure,
            "running": now.num_running,
            "waiting": now.num_waiting,
            "draining": state.draining,
            "requests_total": state.engine.num_accepted,
            "kv_usage": now.kv_usage,
            "kv_tokens": now.num_blocks * now.block_size,
            "max_num_seqs": now.max_num_seqs,
            "tokens_per_second": round(state.metrics.peak_tokens_per_second, 1),
        }
    )


async def metrics(http: web.Request) -> web.Response:
    """Prometheus text."""
    return web.Response(body=http.app[STATE].metrics.render(), headers={"Content-Type": CONTENT_TYPE})


async def version_(_http: web.Request) -> web.Response:
    """The installed version of Octavo."""
    return web.json_response({"version": octavo_version()})


def octavo_version() -> str:
    """The installed distribution's version; "unknown" in a checkout that was never installed."""
    try:
        return version("octavo")
    except PackageNotFoundError:
        return "unknown"


async def server_info(http: web.Request) -> web.Response:
    """What serves here: model, settings, what they became, and the machine; what result files of `octavo bench` keep."""
    state = http.app[STATE]
    loaded = state.ready_engine()
    return web.json_response(
        {
            "version": octavo_version(),
            "location": state.engine.progress.location,
            "settings": state.engine_settings,
            "resolved": dict(loaded.resolved),
            # It asks the machine's own programs.
            "environment": await asyncio.to_thread(environment),
        }
    )


_STATUS = record({"status": text()})

ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/health",
        handler=health,
        tag="life",
        summary="Whether the server lives; 503 when it is stuck or dead",
        answers=json_answer("It lives.", _STATUS),
        errors=(503,),
        is_open=True,
        needs_engine=False,
    ),
    Endpoint(
        method="GET",
        path="/ready",
        handler=ready,
        tag="life",
        summary="Whether requests are served now",
        answers=json_answer("They are.", _STATUS),
        is_open=True,
    ),
    Endpoint(
        method="GET",
        path="/startup",
        handler=startup,
        tag="life",
        summary="How far the start has come",
        answers=json_answer(
            "The stage and what it has done.",
            record(
                {
                    "stage": text(),
                    "bytes": integer(0),
                    "total_bytes": integer(0),
                    "bytes_per_second": integer(0),
                    "idle_seconds": number(0),
                    "stage_seconds": {"type": "object", "additionalProperties": number(0)},
                    "message": text(),
                }
            ),
        ),
        is_open=True,
        needs_engine=False,
    ),
    Endpoint(
        method="GET",
        path="/load",
        handler=load,
        tag="life",
        summary="How busy the server is",
        answers=json_answer(
            "What autoscalers and gateways read.",
            record(
                {
                    "pressure": number(0),
                    "running": integer(0),
                    "waiting": integer(0),
                    "draining": boolean(),
                    "requests_total": integer(0),
                    "kv_usage": number(0, 1),
                    "kv_tokens": integer(0),
                    "max_num_seqs": integer(0),
                    "tokens_per_second": number(0),
                }
            ),
        ),
        is_open=True,
        needs_engine=False,
    ),
    Endpoint(
        method="GET",
        path="/version",
        handler=version_,
        tag="life",
        summary="The version of Octavo",
        answers=json_answer("The installed distribution's.", record({"version": text()})),
        is_open=True,
        needs_engine=False,
    ),
    Endpoint(
        method="GET",
        path="/server_info",
        handler=server_info,
        tag="life",
        summary="Model, settings, what they became, and the machine",
        answers=json_answer(
            "What a measurement needs to know of this server.",
            record(
                {
                    "version": text(),
                    "location": text(),
                    "settings": {"type": "object"},
                    "resolved": {"type": "object"},
                    "environment": {"type": "object"},
                }
            ),
        ),
    ),
    Endpoint(
        method="GET",
        path="/metrics",
        handler=metrics,
        tag="life",
        summary="Prometheus metrics, under vLLM's names",
        answers={200: Answer(description="Prometheus text.", content={CONTENT_TYPE.split(";")[0]: text()})},
        is_open=True,
        needs_engine=False,
    ),
)
