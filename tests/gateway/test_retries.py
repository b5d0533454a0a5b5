"""When another replica is tried, and when not: only before the first byte of an answer."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import web

from octavo_testing.gateway import a_gateway, a_model, a_replica, an_upstream, answering, hanging_up


def a_closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_refused_connection_goes_on_to_the_next_replica() -> None:
    dead = a_replica("dead", url=f"http://127.0.0.1:{a_closed_port()}")
    async with an_upstream() as alive, a_gateway(a_model("m", dead, alive.replica())) as bench:
        answers = [await bench.ask() for _ in range(20)]
        errors = await bench.metric('octavo_gateway_upstream_errors_total{model="default/m",reason="connect"}')

    assert {answer.status for answer in answers} == {200}
    assert alive.requests == 20
    assert errors >= 1


async def test_a_draining_replicas_503_goes_on_to_the_next_replica() -> None:
    async with (
        an_upstream(answering("draining", status=503)) as draining,
        an_upstream() as alive,
        a_gateway(a_model("m", draining.replica(), alive.replica())) as bench,
    ):
        answers = [await bench.ask() for _ in range(20)]

    assert {answer.status for answer in answers} == {200}
    assert alive.requests == 20


async def test_a_connection_cut_before_the_first_byte_is_tried_once_more() -> None:
    async with (
        an_upstream(hanging_up()) as broken,
        an_upstream() as alive,
        a_gateway(a_model("m", broken.replica(), alive.replica())) as bench,
    ):
        answers = [await bench.ask() for _ in range(10)]

    assert {answer.status for answer in answers} == {200}
    assert broken.requests >= 1


async def test_a_request_that_breaks_two_replicas_does_not_get_a_third() -> None:
    """A request that crashes engines must not tour all of them."""
    async with (
        an_upstream(hanging_up()) as one,
        an_upstream(hanging_up()) as two,
        an_upstream(hanging_up()) as three,
        a_gateway(a_model("m", one.replica(), two.replica(), three.replica())) as bench,
    ):
        answer = await bench.ask()

    assert (answer.status, answer.error["code"]) == (502, "upstream_failed")
    assert one.requests + two.requests + three.requests == 2


async def test_a_429_is_tried_once_elsewhere() -> None:
    full = answering("full", status=429, headers={"Retry-After": "7"})
    async with (
        an_upstream(full) as busy,
        an_upstream() as idle,
        a_gateway(a_model("m", busy.replica(), idle.replica())) as bench,
    ):
        answers = [await bench.ask() for _ in range(10)]

    assert {answer.status for answer in answers} == {200}
    assert idle.requests == 10
    assert busy.requests >= 1


@pytest.mark.parametrize(("replicas", "asked"), [(1, 1), (2, 2), (3, 2)])
async def test_a_429_everywhere_is_passed_on_with_its_retry_after(replicas: int, asked: int) -> None:
    full = answering("full", status=429, headers={"Retry-After": "7"})
    async with an_upstream(full) as one, an_upstream(full) as two, an_upstream(full) as three:
        upstreams = (one, two, three)[:replicas]
        async with a_gateway(a_model("m", *(upstream.replica() for upstream in upstreams))) as bench:
            answer = await bench.ask()

    assert (answer.status, answer.json, answer.headers["Retry-After"]) == (429, {"text": "full"}, "7")
    assert one.requests + two.requests + three.requests == asked


@pytest.mark.parametrize("status", [400, 404, 500, 502])
async def test_no_other_status_is_tried_again(status: int) -> None:
    async with (
        an_upstream(answering("x", status=status)) as one,
        an_upstream(answering("x", status=status)) as two,
        a_gateway(a_model("m", one.replica(), two.replica())) as bench,
    ):
        answer = await bench.ask()

    assert answer.status == status
    assert one.requests + two.requests == 1


async def test_nothing_is_tried_again_after_the_first_byte() -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await asyncio.sleep(0.05)
        return await hanging_up()(request)

    async with (
        an_upstream(half) as one,
        an_upstream(half) as two,
        a_gateway(a_model("m", one.replica(), two.replica())) as bench,
    ):
        answer = await bench.ask(stream=True)

    assert answer.events[0] == "1"
    assert one.requests + two.requests == 1


async def test_a_draining_load_reading_takes_a_replica_out() -> None:
    async with (
        an_upstream() as leaving,
        an_upstream() as staying,
        a_gateway(a_model("m", leaving.replica(), staying.replica())) as bench,
    ):
        leaving.load["draining"] = True
        await asyncio.sleep(1.3)
        for _ in range(10):
            await bench.ask()

    assert (leaving.requests, staying.requests) == (0, 10)


async def test_the_pressure_that_load_tells_decides() -> None:
    async with (
        an_upstream() as busy,
        an_upstream() as idle,
        a_gateway(a_model("m", busy.replica(), idle.replica())) as bench,
    ):
        busy.load.update(pressure=1.7, running=8)
        await asyncio.sleep(1.3)
        for _ in range(10):
            await bench.ask()

    assert (busy.requests, idle.requests) == (0, 10)
