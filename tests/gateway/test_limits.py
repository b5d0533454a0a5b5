"""Sick replicas and slow ones through a real gateway: who is left alone, and what a client is told when time is over."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable

import aiohttp
import pytest
from aiohttp import web

from octavo_gateway import proxy
from octavo_gateway.circuit import EJECT_AFTER
from octavo_gateway.reply import Reply
from octavo_testing.gateway import (
    CHAT,
    a_gateway,
    a_model,
    an_upstream,
    answering,
    streaming,
    until,
)


async def never(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize("status", [500, 502])
async def test_a_replica_that_answers_500_again_and_again_gets_nothing_for_a_while(status: int) -> None:
    async with (
        an_upstream(answering("x", status=status)) as sick,
        an_upstream() as well,
        a_gateway(a_model("m", sick.replica("m-1"), well.replica("m-2"))) as bench,
    ):
        answers = [await bench.ask() for _ in range(60)]
        ejections = await bench.metric('octavo_gateway_ejections_total{model="default/m"}')

    assert (sick.requests, ejections) == (EJECT_AFTER, 1)
    assert [answer.status for answer in answers].count(status) == EJECT_AFTER


@pytest.mark.parametrize("status", [400, 404, 429])
async def test_a_replica_that_refuses_what_clients_ask_is_not_sick(status: int) -> None:
    async with (
        an_upstream(answering("x", status=status)) as one,
        a_gateway(a_model("m", one.replica("m-1"), one.replica("m-2"))) as bench,
    ):
        for _ in range(30):
            await bench.ask()

        assert await bench.metric('octavo_gateway_ejections_total{model="default/m"}') == 0


async def test_a_replica_that_does_not_begin_to_answer_is_a_504_and_its_work_ends() -> None:
    async with (
        an_upstream(never) as slow,
        an_upstream() as other,
        a_gateway(a_model("m", slow.replica("m-1")), first_byte_timeout_s=0.2) as bench,
    ):
        answer = await bench.ask()
        async with asyncio.timeout(5):
            await slow.cancelled.wait()
        errors = await bench.metric('octavo_gateway_upstream_errors_total{model="default/m",reason="timeout"}')

    assert (answer.status, answer.error["code"], errors) == (504, "timeout", 1)
    assert "0.2 s" in answer.error["message"]
    assert other.requests == 0


async def test_a_stream_that_has_begun_is_not_under_the_limit_of_its_first_byte() -> None:
    gate: asyncio.Queue[bytes | None] = asyncio.Queue()
    async with (
        an_upstream(streaming(gate)) as upstream,
        a_gateway(a_model("m", upstream.replica()), first_byte_timeout_s=0.3) as bench,
        bench.client.post(bench.url + CHAT, json={"model": "m", "stream": True}) as response,
    ):
        await asyncio.sleep(0.6)
        await gate.put(b"data: late\n\n")
        await gate.put(None)
        body = await response.content.read()

    assert body == b"data: late\n\n"


async def test_a_request_that_takes_too_long_is_a_504_before_its_first_byte_and_an_error_event_after_it() -> None:
    gate: asyncio.Queue[bytes | None] = asyncio.Queue()
    await gate.put(b"data: 1\n\n")
    async with (
        an_upstream(never) as slow,
        an_upstream(streaming(gate)) as endless,
        a_gateway(a_model("a", slow.replica()), a_model("b", endless.replica()), request_timeout_s=0.5) as bench,
    ):
        before = await bench.ask("a")
        after = await bench.ask("b", stream=True)
        async with asyncio.timeout(5):
            await endless.cancelled.wait()
            await slow.cancelled.wait()
        counted = await bench.metric('octavo_gateway_requests_total{code="504",model="default/b"}')

    assert (before.status, before.error["code"]) == (504, "timeout")
    assert after.events[0] == "1"
    assert json.loads(after.events[1])["error"]["code"] == "timeout"
    assert after.events[2] == "[DONE]"
    assert counted == 1


async def test_holding_counts_as_a_part_of_the_requests_time() -> None:
    async with a_gateway(a_model("m"), request_timeout_s=0.3) as bench:
        answer = await bench.ask()

    assert (answer.status, answer.error["code"]) == (504, "timeout")
    assert bench.gateway.router.admission.held() == {}


async def test_a_client_that_does_not_read_is_cut_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def flood(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65_536)

    cut: list[Reply] = []

    def cut_and_tell(reply: Reply, original: Callable[[Reply], web.StreamResponse] = Reply.cut) -> web.StreamResponse:
        cut.append(reply)
        return original(reply)

    monkeypatch.setattr(proxy, "GIVE_UP_WITHIN_S", 0.1)
    monkeypatch.setattr(Reply, "cut", cut_and_tell)
    async with (
        an_upstream(flood) as upstream,
        a_gateway(a_model("m", upstream.replica()), request_timeout_s=2) as bench,
    ):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", bench.gateway.port))
        body = b'{"model": "m", "stream": true}'
        client.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await until(lambda: bench.gateway.proxy.in_flight == 1, within_s=20)
        await until(lambda: bench.gateway.proxy.in_flight == 0, within_s=20)
        client.close()

    assert len(cut) == 1


@pytest.mark.parametrize("held", [False, True])
async def test_a_replica_that_falls_silent_in_a_stream_is_an_error_event(
    held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate: asyncio.Queue[bytes | None] = asyncio.Queue()
    await gate.put(b"data: 1\n\n")
    if held:
        monkeypatch.setattr("octavo_gateway.admission.HEARTBEAT_EVERY_S", 0.05)
    async with (
        an_upstream(streaming(gate)) as upstream,
        a_gateway(a_model("m", *([] if held else [upstream.replica()])), stall_timeout_s=0.3) as bench,
    ):
        asking = asyncio.create_task(bench.ask(stream=True))
        if held:
            await asyncio.sleep(0.2)
            bench.set_models(a_model("m", upstream.replica()))
        answer = await asking
        async with asyncio.timeout(5):
            await upstream.cancelled.wait()
        errors = await bench.metric('octavo_gateway_upstream_errors_total{model="default/m",reason="stalled"}')
        counted = await bench.metric('octavo_gateway_requests_total{code="504",model="default/m"}')

    assert answer.events[0] == "1"
    assert "silent for 0.3 s" in json.loads(answer.events[1])["error"]["message"]
    assert answer.events[2] == "[DONE]"
    assert (errors, counted) == (1, 1)


async def test_a_replica_that_falls_silent_in_another_answer_is_cut_so_that_it_does_not_look_whole() -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"{")
        await asyncio.Event().wait()
        raise AssertionError

    async with (
        an_upstream(half) as upstream,
        a_gateway(a_model("m", upstream.replica()), stall_timeout_s=0.2) as bench,
    ):
        with pytest.raises(aiohttp.ClientPayloadError):
            await bench.ask()


async def test_pieces_of_a_stream_that_come_in_time_begin_the_limit_anew() -> None:
    gate: asyncio.Queue[bytes | None] = asyncio.Queue()
    async with (
        an_upstream(streaming(gate)) as upstream,
        a_gateway(a_model("m", upstream.replica()), stall_timeout_s=0.4) as bench,
    ):
        asking = asyncio.create_task(bench.ask(stream=True))
        for _ in range(4):
            await asyncio.sleep(0.25)
            await gate.put(b"data: 1\n\n")
        await gate.put(None)
        answer = await asking

    assert answer.events == ["1"] * 4


async def test_the_time_that_a_slow_client_takes_is_not_the_replicas_silence() -> None:
    async def much(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: " + b"x" * 10_000_000 + b"\n\n")
        return response

    async with (
        an_upstream(much) as upstream,
        a_gateway(a_model("m", upstream.replica()), stall_timeout_s=0.3) as bench,
        bench.client.post(bench.url + CHAT, json={"model": "m", "stream": True}) as response,
    ):
        await asyncio.sleep(1)
        body = await response.read()

    assert len(body) == 10_000_008
