"""A client that goes away frees what it held within a second, at whatever stage, and one that does not read is bounded."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from octavo_testing.server import Server, a_completion, fake_server

COMPLETIONS = "/v1/completions"
SMALL_BYTES = 4096


@pytest.fixture(params=["in", "out"])
async def server(tokenizer_folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    async with fake_server(tokenizer_folder, where=str(request.param), seqs=4) as made:
        yield made


@asynccontextmanager
async def a_client_that_does_not_read(server: Server, body: dict[str, Any]) -> AsyncIterator[asyncio.Transport]:
    """Its request has come; all buffers on the way are small, and it hangs up by a reset. Yields the server's side."""
    loop, raw = asyncio.get_running_loop(), json.dumps(body).encode()
    before = server.transports
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BYTES)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", server.port))
        await server.until(lambda: len(server.transports) > len(before))
        (transport,) = [item for item in server.transports if item not in before]
        transport.set_write_buffer_limits(high=SMALL_BYTES)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BYTES)
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        await loop.sock_sendall(client, f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        yield transport


async def check_all_is_free(server: Server) -> None:
    """Within a second, as clients of /load and /metrics see it."""
    engine = server.state.engine
    await server.until(lambda: server.state.num_active == 0 and engine.num_unfinished == 0, timeout_s=1)
    await server.until(lambda: engine._num_waiting() == 0 and engine.snapshot.num_running == 0, timeout_s=1)
    load = (await server.get("/load")).json
    assert (load["running"], load["waiting"], load["kv_usage"], load["pressure"]) == (0, 0, 0, 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "num_steps"),
    [
        ({"prompt": [5] * 490}, 1),
        ({"prompt": [[5] * 100, [6] * 90, [7] * 40], "n": 2}, 3),
        ({"prompt": [5, 6], "n": 4, "max_tokens": 300}, 5),
    ],
    ids=["in the middle of a long prompt", "several prompts, some waiting", "several outputs"],
)
async def test_a_client_that_goes_away_frees_all_of_its_blocks(
    server: Server, fields: dict[str, Any], num_steps: int, stream: bool
) -> None:
    assert server.fake is not None
    runner, engine = server.fake.runner, server.state.engine
    runner.gate.clear()
    body = a_completion(**{"max_tokens": 15, "ignore_eos": True, "stream": stream, **fields})
    request = asyncio.create_task(server.post(COMPLETIONS, body))
    await server.until(lambda: engine.num_unfinished > 0)
    runner.let_through(num_steps)
    await server.until(lambda: engine.snapshot.kv_usage > 0)

    request.cancel()
    await server.until(lambda: engine.num_unfinished == 0, timeout_s=1)
    runner.open()

    await check_all_is_free(server)


LONG = a_completion([5, 6], stream=True, ignore_eos=True, max_tokens=400, n=4, return_token_ids=True)
"""Some 400 KB of answer, where each step's tokens are read before the next; few where one event joins many steps."""


async def until_the_client_holds_up_its_answer(server: Server, transport: asyncio.Transport) -> None:
    """Step by step, so that it is long enough, and leaves the gate closed in the middle of it."""
    assert server.fake is not None
    async with asyncio.timeout(10):
        while transport.get_write_buffer_size() <= SMALL_BYTES:
            server.fake.runner.let_through(1)
            await asyncio.sleep(0.001)
    assert server.state.engine.num_unfinished == 1


async def test_a_client_that_goes_away_while_its_answer_waits_for_it_frees_its_blocks(server: Server) -> None:
    """The handler is inside a write, and the engine in the middle of the answer."""
    assert server.fake is not None
    runner, engine = server.fake.runner, server.state.engine
    runner.gate.clear()
    async with a_client_that_does_not_read(server, LONG) as transport:
        await until_the_client_holds_up_its_answer(server, transport)
        assert engine.snapshot.kv_usage > 0
    await server.until(lambda: engine.num_unfinished == 0, timeout_s=1)
    runner.open()

    await check_all_is_free(server)


async def test_a_client_that_does_not_read_holds_nobody(server: Server) -> None:
    """Its own output is computed to the end and waits; the blocks are free long before anybody reads it."""
    assert server.fake is not None
    server.fake.runner.gate.clear()
    async with a_client_that_does_not_read(server, LONG) as transport:
        await until_the_client_holds_up_its_answer(server, transport)
        server.fake.runner.open()
        others = await asyncio.gather(*(server.post(COMPLETIONS, a_completion()) for _ in range(4)))
        await server.until(lambda: server.state.engine.num_unfinished == 0)
        load = (await server.get("/load")).json
        waiting_bytes, is_held = transport.get_write_buffer_size(), server.state.num_active == 1

    assert [answer.status for answer in others] == [200] * 4
    assert (load["running"], load["waiting"], load["kv_usage"]) == (0, 0, 0)
    assert is_held
    assert waiting_bytes < 2**17
    await check_all_is_free(server)


async def test_a_client_that_takes_nothing_for_too_long_is_cut_off(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo_server.api.sse.WRITE_TIMEOUT_S", 0.05)
    assert server.fake is not None
    server.fake.runner.gate.clear()
    async with a_client_that_does_not_read(server, LONG) as transport:
        await until_the_client_holds_up_its_answer(server, transport)
        server.fake.runner.open()

        await server.until(lambda: server.state.num_active == 0)
        await check_all_is_free(server)


async def test_a_client_that_goes_away_while_it_sends_leaves_nothing(server: Server) -> None:
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head.encode() + b'{"model": "tiny", ')
    await writer.drain()
    await server.until(lambda: server.state.num_active == 1)

    writer.transport.abort()

    await check_all_is_free(server)
    assert server.state.engine.num_accepted == 0


async def test_a_body_that_only_drips_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo_server.api.body.BODY_TIMEOUT_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
    writer.write(head.encode())
    # Not to the end: what was still dripping in makes that a reset.
    answer = asyncio.create_task(reader.readuntil(b"}}"))
    while not answer.done():
        writer.write(b" ")
        await asyncio.wait([answer], timeout=0.005)
    writer.close()

    text = (await answer).decode()
    assert text.startswith("HTTP/1.1 408 ")
    assert "did not come whole within 0.05 s" in text
