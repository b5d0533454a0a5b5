"""One client's connection to the adapter: how many there may be, and how long each stage of one may take.

Any pod of the cluster may connect, and aiohttp bounds none of this. A connection counts from the moment that it is
accepted, its TLS handshake included.

| a client that                             | gets |
|-------------------------------------------|------|
| is one too many                           | the place of the oldest that asks nothing, first of those without a certificate |
| is one too many while all of them ask     | closed |
| does not end its handshake                | closed, after ``handshake_timeout_s`` |
| sends nothing after its handshake         | closed, after ``header_timeout_s`` |
| does not end the head that it began       | 408, after ``header_timeout_s`` |
| does not end its body, which nobody reads | its answer, then closed after ``body_timeout_s`` |
| is idle between two requests              | closed, after ``keepalive_timeout_s`` |
| takes nothing of what waits for it        | cut, after ``write_timeout_s`` |
| sends what is no HTTP, or too long a head | 400, without a traceback in the log |

The API server's front proxy shows a certificate, so that its idle connections are the last ones to give way.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aiohttp import web

from octavo_operator.metrics_adapter.errors import AdapterError, BadRequestError, InternalError, RequestTimeoutError

logger = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT_S = 2.0
"""For the client's half of the end of TLS."""
WARN_EVERY_S = 60.0
MAX_DETAIL_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Seconds, bytes and counts; named as the gateway's are."""

    max_connections: int = 128
    """An API server opens one for each of its requests at once; three of them with ten are 30. Each takes up to 1 MiB."""
    max_header_bytes: int = 32 * 1024
    """A label selector travels in the request line; aiohttp's own limit of 8 KiB is less than the API server's."""
    handshake_timeout_s: float = 10.0
    header_timeout_s: float = 30.0
    body_timeout_s: float = 10.0
    keepalive_timeout_s: float = 75.0
    write_timeout_s: float = 30.0


class Connection(web.RequestHandler):
    """aiohttp's, but for the handshake, its errors and the limits that it does not have."""

    __slots__ = ("_early", "_has_begun_head", "_head_timer", "_of", "_tcp", "_write_timer", "handshake", "is_trusted")

    def __init__(self, connections: Connections, tcp: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        limits = connections.limits
        # None is aiohttp's own word for no access log, though its annotation does not say so.
        no_log: Any = None
        super().__init__(
            connections,
            loop=loop,
            access_log=no_log,
            keepalive_timeout=limits.keepalive_timeout_s,
            max_line_size=limits.max_header_bytes,
            max_field_size=limits.max_header_bytes,
            lingering_time=limits.body_timeout_s,
        )
        self._of = connections
        self._tcp = tcp
        # What comes with the last flight of the handshake; None once there is somebody to read it.
        self._early: bytes | None = b""
        self._has_begun_head = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self.is_trusted = False
        """Whether TLS verified a certificate of its client."""
        self.handshake = loop.create_task(self._shake_hands())

    @property
    def asks_nothing(self) -> bool:
        """Whether ending it costs nobody an answer."""
        return not self._request_in_progress

    def abort(self) -> None:
        self._tcp.abort()

    async def _shake_hands(self) -> None:
        try:
            transport = await self._loop.start_tls(
                self._tcp,
                self,
                self._of.tls_context,
                server_side=True,
                ssl_handshake_timeout=self._of.limits.handshake_timeout_s,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            )
        except OSError as error:
            logger.debug("a client's TLS handshake failed", extra={"why": str(error)})
            transport = None
        if transport is None or self not in self._of.open:
            self._of.leave(self)
            self._tcp.abort()
            return
        self.is_trusted = bool(transport.get_extra_info("peercert"))
        self.connection_made(transport)
        # Not before the task that reads it has begun.
        self._loop.call_soon(self._read_early)

    def _read_early(self) -> None:
        early, self._early = self._early, None
        if early:
            self.data_received(early)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._of.leave(self)
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._early is not None:
            self._early += data
            return
        super().data_received(data)
        if not self._awaits_head:
            self._end_head()
        elif data:
            self._has_begun_head = True
            if self._head_timer is None:
                self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self._loop.call_later(self._of.limits.write_timeout_s, self.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what no handler of ours has seen; the connection ends with it."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun, no other can be sent")
        if status == HTTPStatus.BAD_REQUEST:
            # What follows the first paragraph is what was sent, which may be a token.
            detail = " ".join((message or "").partition("\n\n")[0].split())[:MAX_DETAIL_CHARS]
            error: AdapterError = BadRequestError(f"this is not a valid HTTP request: {detail}")
            logger.debug("a client sent what is no HTTP", extra={"why": str(error)})
        else:
            logger.error("a request failed outside of its handler", exc_info=exc)
            error = InternalError("the metrics adapter failed to answer; the operator's log says why")
        response = web.Response(status=error.code, body=_body(error), content_type="application/json")
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """A body that nobody read and that is not what its headers say is its client's mistake, not ours."""
        if isinstance(kwargs.get("exc_info"), web.RequestPayloadError):
            logger.debug("a client sent a body that is not what its headers say")
            return
        super().log_exception(*args, **kwargs)

    @property
    def _awaits_head(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def _await_head(self) -> None:
        self._head_timer = self._loop.call_later(self._of.limits.header_timeout_s, self._on_head_timeout)

    def _end_head(self) -> None:
        self._has_begun_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_timeout(self) -> None:
        self._head_timer = None
        if not self._awaits_head or self.transport is None:
            return
        if self._has_begun_head:
            limit_s = self._of.limits.header_timeout_s
            error = RequestTimeoutError(f"the head of the request did not come within {limit_s:g} s; send it at once")
            body = _body(error)
            self.transport.write(
                f"HTTP/1.1 {error.code} {HTTPStatus(error.code).phrase}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                + body
            )
        self.force_close()


class Connections(web.Server):
    """Makes a `Connection` of each client and knows those that are open, in the order in which they came."""

    def __init__(
        self, server: web.Server, tls_context: ssl.SSLContext, limits: ConnectionLimits, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            server.request_handler,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            loop=loop,
        )
        self.tls_context = tls_context
        self.limits = limits
        self.open: dict[Connection, None] = {}
        self._own_loop = loop
        self._num_closed = 0
        self._may_warn_at = float("-inf")

    def accept(self) -> asyncio.Protocol:
        """The factory for `create_server`, which must be given no TLS of its own: asyncio's hides a handshake."""
        return _Accepted(self)

    def enter(self, tcp: asyncio.Transport) -> None:
        if len(self.open) >= self.limits.max_connections:
            self._warn()
            oldest = self._oldest_to_end()
            if oldest is None:
                tcp.abort()
                return
            self.leave(oldest)
            oldest.abort()
        self.open[Connection(self, tcp, self._own_loop)] = None

    def leave(self, connection: Connection) -> None:
        self.open.pop(connection, None)

    async def end_handshakes(self) -> None:
        tasks = [connection.handshake for connection in self.open if not connection.handshake.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _oldest_to_end(self) -> Connection | None:
        idle = [connection for connection in self.open if connection.asks_nothing]
        return next((connection for connection in idle if not connection.is_trusted), idle[0] if idle else None)

    def _warn(self) -> None:
        """Once a minute: whoever opens connections without end shall not fill the log."""
        self._num_closed += 1
        now = self._own_loop.time()
        if now < self._may_warn_at:
            return
        logger.warning(
            "the custom metrics adapter has as many connections as it may, so that for a new one an idle one is closed "
            "or itself; see which pods reach its port, and let the API server alone by a NetworkPolicy",
            extra={"max_connections": self.limits.max_connections, "closed": self._num_closed},
        )
        self._num_closed = 0
        self._may_warn_at = now + WARN_EVERY_S


class Runner(web.AppRunner):
    """Serves an application over `Connection`s."""

    def __init__(self, app: web.Application, tls_context: ssl.SSLContext, limits: ConnectionLimits) -> None:
        super().__init__(app, shutdown_timeout=5.0)
        self._tls_context = tls_context
        self._limits = limits

    @property
    def connections(self) -> Connections:
        """After `setup`."""
        assert isinstance(self.server, Connections)
        return self.server

    async def _make_server(self) -> Connections:
        server = await super()._make_server()
        return Connections(server, self._tls_context, self._limits, asyncio.get_running_loop())


class _Accepted(asyncio.Protocol):
    """A connection before its handshake, which takes it over at once."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        # Not a byte is for us: reading goes on within TLS.
        transport.pause_reading()
        self._connections.enter(transport)


def _body(error: AdapterError) -> bytes:
    return json.dumps(error.status(), separators=(",", ":")).encode()
