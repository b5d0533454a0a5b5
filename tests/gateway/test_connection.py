"""Clients that are slow, too many, or half gone, over real sockets: each ends by a limit, and says why where it can."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from octavo_testing.gateway import (
    CHAT,
    Bench,
    a_gateway,
    a_model,
    a_request,
    an_upstream,
    read_answer,
    streaming,
    until,
)

REQUEST = a_request()


@contextlib.asynccontextmanager
async def connected(bench: Bench) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.gateway.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def drip(writer: asyncio.StreamWriter, data: bytes, *, every_s: float) -> None:
    with contextlib.suppress(ConnectionError):
        for byte in data:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(every_s)


async def cuts(bench: Bench, reason: str) -> float:
    return await bench.metric(f'octavo_gateway_cut_connections_total{{reason="{reason}"}}')


async def test_a_head_that_comes_byte_by_byte_is_a_408_when_its_time_is_over() -> None:
    async with a_gateway(a_model("m"), header_timeout_s=0.3) as bench, connected(bench) as (reader, writer):
        dripping = asyncio.create_task(drip(writer, b"POST / HTTP/1.1\r\n" + b"X-A: b\r\n" * 1000, every_s=0.02))
        async with asyncio.timeout(5):
            status, answer = read_answer(await reader.read())
        dripping.cancel()

        assert (status, answer["error"]["code"]) == (408, "request_timeout")
        assert "0.3 s" in answer["error"]["message"]
        assert await cuts(bench, "header_timeout") == 1


async def test_the_time_of_a_head_begins_anew_with_each_request_of_a_connection() -> None:
    async with (
        an_upstream() as upstream,
        a_gateway(a_model("m", upstream.replica()), header_timeout_s=0.3) as bench,
        connected(bench) as (reader, writer),
    ):
        for _ in range(3):
            writer.write(a_request(b'{"model": "m"}', "Connection: keep-alive"))
            await reader.readuntil(b"}")
            await asyncio.sleep(0.2)
        writer.write(b"POST ")
        async with asyncio.timeout(5):
            status, _ = read_answer(await reader.read())

    assert (upstream.requests, status) == (3, 408)


async def test_a_connection_that_says_nothing_at_all_is_closed_without_a_word() -> None:
    async with a_gateway(a_model("m"), header_timeout_s=0.1) as bench:
        assert await bench.talk() == b""
        assert await cuts(bench, "header_timeout") == 0


async def test_a_connection_that_is_idle_between_requests_is_closed() -> None:
    async with a_gateway(a_model("m"), keepalive_timeout_s=0.2) as bench, connected(bench) as (reader, writer):
        writer.write(a_request(b"", "Connection: keep-alive", path="/v1/models", method="GET"))
        async with asyncio.timeout(5):
            answer = await reader.read()

    assert read_answer(answer)[0] == 200


async def test_an_answer_may_take_longer_than_a_head_and_than_an_idle_connection() -> None:
    gate: asyncio.Queue[bytes | None] = asyncio.Queue()
    async with (
        an_upstream(streaming(gate)) as upstream,
        a_gateway(
            a_model("m", upstream.replica()), header_timeout_s=0.1, keepalive_timeout_s=0.1, write_timeout_s=0.1
        ) as bench,
        bench.client.post(bench.url + CHAT, json={"model": "m", "stream": True}) as response,
    ):
        await asyncio.sleep(0.5)
        await gate.put(b"data: late\n\n")
        await gate.put(None)

        assert await response.content.read() == b"data: late\n\n"


async def test_a_body_that_drips_is_a_408_when_its_time_is_over_though_it_never_pauses() -> None:
    body = b'{"model": "m", "pad": "' + b"x" * 1000
    async with (
        an_upstream() as upstream,
        a_gateway(a_model("m", upstream.replica()), body_timeout_s=0.3, body_silence_s=5) as bench,
        connected(bench) as (reader, writer),
    ):
        head = a_request(b"", "Connection: close", "Content-Length: 2000", announced=False)
        dripping = asyncio.create_task(drip(writer, head + body, every_s=0.01))
        async with asyncio.timeout(5):
            status, answer = read_answer(await reader.readuntil(b"}}"))
        dripping.cancel()
        assert bench.gateway.proxy.buffered_bytes == 0

    assert (status, answer["error"]["code"]) == (408, "request_timeout")
    assert "within 0.3 s" in answer["error"]["message"]
    assert upstream.requests == 0


async def test_one_connection_too_many_is_a_503_and_there_is_room_again_when_one_ends() -> None:
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica()), max_connections=3) as bench:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                reader, writer = await stack.enter_async_context(connected(bench))
                writer.write(a_request(b"", "Connection: keep-alive", path="/v1/models", method="GET"))
                await reader.readuntil(b"]}")
            status, answer = read_answer(await bench.talk())
        # Those of the stack are gone, which the gateway hears a little later.
        async with asyncio.timeout(5):
            while read_answer(await bench.talk(REQUEST))[0] != 200:
                await asyncio.sleep(0.01)

        assert (status, answer["error"]["code"]) == (503, "too_many_connections")
        assert "limit is 3" in answer["error"]["message"]
        assert await cuts(bench, "too_many_connections") >= 1


async def test_a_client_that_takes_nothing_of_its_answer_is_cut_and_its_replica_stops() -> None:
    async def flood(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65_536)

    async with (
        an_upstream(flood) as upstream,
        a_gateway(a_model("m", upstream.replica()), write_timeout_s=0.3) as bench,
    ):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", bench.gateway.port))
        client.sendall(REQUEST)
        async with asyncio.timeout(20):
            await upstream.cancelled.wait()
        await until(lambda: bench.gateway.proxy.in_flight == 0)
        client.close()

        assert await cuts(bench, "write_timeout") == 1
        assert await bench.metric('octavo_gateway_requests_total{code="499",model="default/m"}') == 1


async def test_a_client_that_reads_slowly_but_reads_is_not_cut() -> None:
    size = 12_000_000

    async def large(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"x" * size)

    async with (
        an_upstream(large) as upstream,
        a_gateway(a_model("m", upstream.replica()), write_timeout_s=0.3) as bench,
    ):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.connect(("127.0.0.1", bench.gateway.port))
        client.sendall(REQUEST)
        reader, writer = await asyncio.open_connection(sock=client)
        got = 0
        while piece := await reader.read(65_536):
            got += len(piece)
            await asyncio.sleep(0.005)
        writer.close()

    assert got > size


@pytest.mark.parametrize("sent", [REQUEST, REQUEST[:-5], REQUEST[:40]], ids=["all", "half a body", "half a head"])
async def test_a_client_that_closes_its_side_counts_as_gone_at_once(sent: bytes) -> None:
    async def never(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with an_upstream(never) as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        assert await bench.talk(sent, ends=True) == b""
        await until(lambda: bench.gateway.proxy.in_flight == 0 and bench.gateway.proxy.buffered_bytes == 0)
        if upstream.requests:
            async with asyncio.timeout(5):
                await upstream.cancelled.wait()


async def at_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def in_the_head(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(REQUEST[:30])
    await writer.drain()
    writer.transport.abort()


async def in_the_body(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(REQUEST[:-3])
    await asyncio.sleep(0.02)
    writer.transport.abort()


async def before_the_answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(REQUEST)
    await asyncio.sleep(0.02)
    writer.transport.abort()


async def in_the_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(REQUEST)
    await reader.readuntil(b"data: 1")
    writer.transport.abort()


@pytest.mark.parametrize("leaves", [at_once, in_the_head, in_the_body, before_the_answer, in_the_answer])
async def test_nothing_stays_of_clients_that_leave_at_any_stage(
    leaves: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.05)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await asyncio.Event().wait()
        raise AssertionError

    async with an_upstream(slow) as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        for _ in range(5):
            async with connected(bench) as (reader, writer):
                await leaves(reader, writer)
        gateway = bench.gateway
        await until(lambda: gateway.proxy.in_flight == 0 and gateway.proxy.buffered_bytes == 0)
        assert await bench.metric("octavo_gateway_in_flight_requests") == 0
        assert gateway.router.balancer.in_flight(upstream.url) == 0

    assert [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []
