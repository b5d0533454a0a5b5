"""Clients that are slow, too many, or half gone, over real TLS: each ends by a limit, and none takes the API server's
place."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from octavo_operator.metrics_adapter.access import Authenticator, Authorizer
from octavo_operator.metrics_adapter.app import make_adapter
from octavo_operator.metrics_adapter.connection import ConnectionLimits
from octavo_operator.metrics_adapter.kube_access import UserInfo
from octavo_operator.metrics_adapter.serving import AdapterTls, listening
from octavo_operator.metrics_adapter.store import MetricsStore
from octavo_testing.adapter import FakeKube, KeyPair, a_ca, a_client
from octavo_testing.tls_client import hurry

TOKEN = "t0ken"
PODS = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/pods/*/"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class SlowKube(FakeKube):
    """Reviews tokens while its gate is open."""

    def __init__(self) -> None:
        super().__init__(allowed_users={"hpa"})
        self.users_by_token = {TOKEN: UserInfo(name="hpa")}
        self.gate = asyncio.Event()
        self.gate.set()
        self.num_waiting = 0

    async def review_token(self, token: str) -> UserInfo | None:
        self.num_waiting += 1
        await self.gate.wait()
        return await super().review_token(token)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    port: int
    kube: SlowKube
    ca: KeyPair
    folder: Path

    def context(self, client: KeyPair | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if client is not None:
            context.load_cert_chain(*client.write(self.folder, "client"))
        return context

    @contextlib.asynccontextmanager
    async def connected(self, client: KeyPair | None = None, *, is_tls: bool = True) -> AsyncIterator[Stream]:
        context = self.context(client) if is_tls else None
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def an_adapter(folder: Path, **limits: float) -> AsyncIterator[Served]:
    kube, ca, tls, serving = SlowKube(), a_ca(), AdapterTls(), a_ca("adapter")
    tls.load_certificate(serving.cert_pem, serving.key_pem)
    tls.ask_for_clients_of(ca.cert_pem.decode())
    app = make_adapter(
        list_pods=list,
        store=MetricsStore(),
        authenticator=Authenticator(kube, now=time.time),
        authorizer=Authorizer(kube, now=time.time),
        now=time.time,
    )
    bounds = ConnectionLimits(**limits)  # type: ignore[arg-type]
    async with listening(app, tls, host="127.0.0.1", port=0, limits=bounds) as port:
        yield Served(port=port, kube=kube, ca=ca, folder=folder)


def a_request(path: str = "/apis", *headers: str, method: str = "GET", token: str = TOKEN) -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "Host: adapter", f"Authorization: Bearer {token}", *headers)
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, object]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


async def is_ended(reader: asyncio.StreamReader) -> bool:
    """Within five seconds, and without another byte."""
    async with asyncio.timeout(5):
        try:
            return await reader.read() == b""
        except OSError:
            return True


async def test_a_handshake_that_does_not_begin_is_cut(tmp_path: Path) -> None:
    async with (
        an_adapter(tmp_path, handshake_timeout_s=0.2) as adapter,
        adapter.connected(is_tls=False) as (reader, _),
    ):
        assert await is_ended(reader)


async def test_a_head_that_comes_byte_by_byte_is_a_408_when_its_time_is_over(tmp_path: Path) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            for byte in b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 1000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.02)

    async with an_adapter(tmp_path, header_timeout_s=0.3) as adapter, adapter.connected() as (reader, writer):
        dripping = asyncio.create_task(drip(writer))
        async with asyncio.timeout(5):
            status, answer = await read_answer(reader)
        dripping.cancel()

        assert (status, answer["kind"], answer["reason"]) == (408, "Status", "Timeout")
        assert "0.3 s" in str(answer["message"])
        assert await is_ended(reader)


@pytest.mark.parametrize("sent", [b"", b"GET /"])
async def test_what_comes_with_the_end_of_the_handshake_begins_the_head(sent: bytes, tmp_path: Path) -> None:
    """In one segment, as a client in a hurry sends it."""
    async with an_adapter(tmp_path, header_timeout_s=0.3) as adapter:
        answer = await asyncio.to_thread(hurry, adapter.port, adapter.context(), sent)

    assert answer[:12] == (b"HTTP/1.1 408" if sent else b"")


async def test_a_body_that_does_not_come_is_answered_and_not_waited_for(tmp_path: Path) -> None:
    async with an_adapter(tmp_path, body_timeout_s=0.2) as adapter, adapter.connected() as (reader, writer):
        writer.write(a_request("/apis", "Content-Length: 1000", method="POST"))

        assert (await read_answer(reader))[0] == 405
        assert await is_ended(reader)


async def test_a_connection_that_is_idle_between_requests_is_closed(tmp_path: Path) -> None:
    async with an_adapter(tmp_path, keepalive_timeout_s=0.3) as adapter, adapter.connected() as (reader, writer):
        for _ in range(2):
            writer.write(a_request())
            assert (await read_answer(reader))[0] == 200

        assert await is_ended(reader)


async def test_an_answer_may_take_longer_than_a_head_and_than_an_idle_connection(tmp_path: Path) -> None:
    async with (
        an_adapter(tmp_path, header_timeout_s=0.1, keepalive_timeout_s=0.1) as adapter,
        adapter.connected() as (reader, writer),
    ):
        adapter.kube.gate.clear()
        writer.write(a_request())
        await asyncio.sleep(0.4)
        adapter.kube.gate.set()

        assert (await read_answer(reader))[0] == 200


async def test_a_client_that_takes_nothing_of_its_answers_is_cut(tmp_path: Path) -> None:
    """Each of them is as long as the name that it does not find."""
    request = a_request(PODS + "x" * 30_000)
    async with an_adapter(tmp_path, write_timeout_s=0.3) as adapter, adapter.connected() as (_, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]

        async def ask_without_end() -> None:
            while True:
                writer.write(request)
                await writer.drain()

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(ask_without_end(), 30)


@pytest.mark.parametrize("sent", [b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n\r\n"])
async def test_what_is_no_http_is_a_status_400_and_no_traceback(
    sent: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with an_adapter(tmp_path) as adapter, adapter.connected() as (reader, writer):
        writer.write(sent)
        status, answer = await read_answer(reader)

    assert (status, answer["kind"], answer["reason"]) == (400, "Status", "BadRequest")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("is_tls", [False, True])
async def test_more_connections_than_the_bound_do_not_keep_the_api_server_from_being_answered(
    is_tls: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may come last, and the connection that it leaves idle in between stays its own."""
    async with contextlib.AsyncExitStack() as stack:
        adapter = await stack.enter_async_context(an_adapter(tmp_path, max_connections=4))
        flood = [await stack.enter_async_context(adapter.connected(is_tls=is_tls)) for _ in range(10)]
        api_server = a_client("front-proxy-client", adapter.ca)
        reader, writer = await stack.enter_async_context(adapter.connected(api_server))
        for _ in range(3):
            writer.write(a_request())
            assert (await read_answer(reader))[0] == 200
            flood += [await stack.enter_async_context(adapter.connected(is_tls=is_tls)) for _ in range(10)]

        # Three places are left to the flood: the first comers are gone.
        assert all([await is_ended(reader) for reader, _ in flood[:-3]])
        assert not any(reader.at_eof() for reader, _ in flood[-3:])

    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "as many connections as it may" in warning.getMessage()
    assert (warning.max_connections, warning.closed) == (4, 1)  # type: ignore[attr-defined]


async def test_no_request_that_is_worked_on_gives_way_to_a_new_connection(tmp_path: Path) -> None:
    async with an_adapter(tmp_path, max_connections=2) as adapter, contextlib.AsyncExitStack() as stack:
        adapter.kube.gate.clear()
        busy = [await stack.enter_async_context(adapter.connected()) for _ in range(2)]
        for _, writer in busy:
            writer.write(a_request())
        async with asyncio.timeout(5):
            while adapter.kube.num_waiting < 2:
                await asyncio.sleep(0.01)

        with pytest.raises(ConnectionError):
            await stack.enter_async_context(adapter.connected())

        adapter.kube.gate.set()
        assert [(await read_answer(reader))[0] for reader, _ in busy] == [200, 200]
        reader, writer = await stack.enter_async_context(adapter.connected())
        writer.write(a_request())
        assert (await read_answer(reader))[0] == 200


async def test_a_handshake_in_progress_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with asyncio.timeout(5):
            async with an_adapter(tmp_path) as adapter:
                reader, _ = await stack.enter_async_context(adapter.connected(is_tls=False))
                await asyncio.sleep(0.05)

            assert await is_ended(reader)
