"""Loading pods tell how far they are; nobody waits for one that does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from octavo_operator import probe
from octavo_operator.observed import Pod, Startup
from octavo_operator.probe import StartupProbe, parse_startup
from octavo_testing.control_plane import a_download_pod, a_pod, running, waiting


def at_loopback(pod: Pod) -> Pod:
    return Pod(raw={**pod.raw, "status": {**pod.raw["status"], "podIP": "127.0.0.1"}})


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    async def startup(_: web.Request) -> web.Response:
        return web.json_response({"stage": "downloading", "bytes": 5, "total_bytes": 9, "message": ""})

    app = web.Application()
    app.router.add_get("/startup", startup)
    async with TestServer(app, host="127.0.0.1") as running_server:
        monkeypatch.setattr(probe, "SERVER_PORT", running_server.port)
        yield


async def test_only_pods_that_run_and_are_not_ready_are_asked(server: None) -> None:
    pods = [
        at_loopback(a_pod("loading", server=running())),
        at_loopback(a_download_pod("fetching", server=running(), ready=True)),
        at_loopback(a_pod("ready", server=running(), ready=True)),
        at_loopback(a_pod("waiting", server=waiting("ContainerCreating"))),
        at_loopback(a_pod("leaving", server=running(), terminating=True)),
    ]

    async with StartupProbe.open_session() as session:
        told = await StartupProbe(session).read(pods)

    downloading = Startup(stage="downloading", done_bytes=5, total_bytes=9)
    assert told == {"loading": downloading, "fetching": downloading}


async def test_a_ready_pod_is_asked_where_its_start_is_to_be_told(server: None) -> None:
    pod = at_loopback(a_pod("ready", server=running(), ready=True))

    async with StartupProbe.open_session() as session:
        assert set(await StartupProbe(session).read([pod], also=pod)) == {"ready"}


async def test_pod_that_does_not_answer_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SERVER_PORT", 9)

    async with StartupProbe.open_session() as session:
        assert await StartupProbe(session).read([at_loopback(a_pod(server=running()))]) == {}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"stage": None, "bytes": "x", "total_bytes": None, "message": None, "stage_seconds": 5, "idle_seconds": "x"},
        {"bytes": 10**400, "total_bytes": 1e300, "bytes_per_second": float("inf")},
        {"bytes": True, "total_bytes": -1, "bytes_per_second": float("nan"), "stage_seconds": {}},
    ],
)
def test_fields_of_another_type_count_as_absent(answer: dict[str, Any]) -> None:
    parsed = parse_startup(answer)

    assert (parsed.done_bytes, parsed.total_bytes, parsed.message) == (0, 0, "")
    assert (parsed.bytes_per_second, parsed.idle_s, parsed.stage_seconds) == (0, 0, {})


async def test_pod_without_an_address_is_not_asked() -> None:
    async with StartupProbe.open_session() as session:
        unplaced = Pod(raw={**a_pod(ready=True).raw, "status": {}})

        assert await StartupProbe(session).read([], also=unplaced) == {}
