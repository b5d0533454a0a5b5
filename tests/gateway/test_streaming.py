"""Streams: each piece passes as it comes, and an end on either side is felt at once on the other."""

from __future__ import annotations

import asyncio
import gzip
import json

from aiohttp import web

from octavo_testing.gateway import CHAT, a_gateway, a_model, an_upstream, hanging_up, streaming, until


async def test_each_piece_passes_before_the_next_one_is_written() -> None:
    gate: asyncio.Queue[bytes | None] = asyncio.Queue()
    # Nothing is taken out of a stream that the client asked for its usage; else an event passes when it is whole.
    asked = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
    async with (
        an_upstream(streaming(gate)) as upstream,
        a_gateway(a_model("m", upstream.replica())) as bench,
        bench.client.post(bench.url + CHAT, json=asked) as response,
    ):
        for piece in (b"data: 1\n\n", b"da", b"ta: 2\n\n", b"data: [DONE]\n\n"):
            await gate.put(piece)
            async with asyncio.timeout(5):
                assert await response.content.readany() == piece
        await gate.put(None)
        assert await response.content.read() == b""

    assert response.headers["Content-Type"] == "text/event-stream"


async def test_a_client_that_leaves_ends_the_upstreams_work_at_once() -> None:
    gate: asyncio.Queue[bytes | None] = asyncio.Queue()
    async with an_upstream(streaming(gate)) as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        response = await bench.client.post(bench.url + CHAT, json={"model": "m", "stream": True})
        await gate.put(b"data: 1\n\n")
        await response.content.readany()

        response.close()

        async with asyncio.timeout(1):
            await upstream.cancelled.wait()
        await until(lambda: bench.gateway.proxy.in_flight == 0)
        gone = await bench.metric('octavo_gateway_requests_total{code="499",model="default/m"}')
        assert bench.gateway.router.balancer.in_flight(upstream.url) == 0

    assert gone == 1


async def test_a_client_that_leaves_before_the_first_byte_ends_the_upstreams_work_too() -> None:
    async def never(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with an_upstream(never) as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        asking = asyncio.create_task(bench.ask())
        await until(lambda: upstream.requests == 1)

        asking.cancel()

        async with asyncio.timeout(1):
            await upstream.cancelled.wait()


async def test_a_stream_that_breaks_in_the_middle_ends_with_an_error_event() -> None:
    async def breaking(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"half')
        await asyncio.sleep(0.05)
        return await hanging_up()(request)

    async with an_upstream(breaking) as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        answer = await bench.ask(stream=True, stream_options={"include_usage": True})
        broken = await bench.metric('octavo_gateway_upstream_errors_total{model="default/m",reason="broken"}')

    assert answer.status == 200
    assert answer.events[0] == '{"half'
    assert json.loads(answer.events[1])["error"]["code"] == "upstream_failed"
    assert answer.events[2] == "[DONE]"
    assert (upstream.requests, broken) == (1, 1)


async def test_an_unstreamed_answer_that_breaks_is_cut_and_never_looks_whole() -> None:
    async def breaking(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"text": "half')
        await asyncio.sleep(0.05)
        return await hanging_up()(request)

    async with an_upstream(breaking) as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.gateway.port)
        body = b'{"model": "m"}'
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        writer.write(head + body)
        async with asyncio.timeout(5):
            try:
                received = await reader.read()
            except ConnectionResetError:
                received = b""
        writer.close()

    assert received.count(b"\r\n\r\n") <= 1
    assert len(received.partition(b"\r\n\r\n")[2]) < 1000
    assert upstream.requests == 1


async def test_a_slow_reader_holds_the_upstream_back_instead_of_filling_memory() -> None:
    sent = 0

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(2000):
            await response.write(b"x" * 65_536)
            sent += 65_536
        return response

    async with an_upstream(flood) as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        response = await bench.client.post(bench.url + CHAT, json={"model": "m", "stream": True})
        await until(lambda: sent > 0)
        settled = -1
        while settled != sent:
            settled = sent
            await asyncio.sleep(0.3)
        response.close()

    assert sent < 64 * 2**20


async def test_answers_are_asked_for_uncompressed() -> None:
    """Heartbeats of a hold are plain text, which a compressed stream could not follow; and usage is read."""
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        for stream in (True, False):
            await bench.send("POST", CHAT, json={"model": "m", "stream": stream}, headers={"Accept-Encoding": "gzip"})

    assert [headers.get("Accept-Encoding") for headers in upstream.headers] == [None, None]


async def test_a_compressed_answer_passes_as_it_is() -> None:
    packed = gzip.compress(b'{"text": "x"}')

    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=packed, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})

    async with an_upstream(handler) as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        answer = await bench.ask()

    assert answer.json == {"text": "x"}
    assert answer.headers["Content-Length"] == str(len(packed))
