"""One client's connection: how many there may be, how long a head may take, and how long nothing may be read.

aiohttp bounds none of these, and answers what is no HTTP with plain text and a logged traceback.

| a client that                           | gets |
|-----------------------------------------|------|
| is one too many                         | 503, closed |
| sends nothing after it has connected    | closed, after ``header_timeout_s`` |
| does not end the head that it began     | 408, after ``header_timeout_s`` |
| is idle between two requests            | closed, after ``keepalive_timeout_s`` |
| takes nothing of what waits for it      | cut, after ``write_timeout_s`` |
| sends what is no HTTP, or too long a head | 400 or 431 |
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError, LineTooLong

from .errors import BadRequest, GatewayError, Unavailable
from .metrics import Metrics
from .reply import error_response
from .request_body import unsupported_coding

logger = logging.getLogger(__name__)

MAX_DETAIL_CHARS = 200
TOO_MANY_HEADERS = "Too many headers received"
"""aiohttp's own words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Seconds, bytes and counts; each is a flag of the gateway under its own name."""

    max_connections: int
    max_headers: int
    max_header_bytes: int
    header_timeout_s: float
    keepalive_timeout_s: float
    write_timeout_s: float


class Connection(web.RequestHandler):
    """aiohttp's, but for its errors and the limits that it does not have."""

    __slots__ = ("_has_begun_head", "_head_timer", "_is_counted", "_is_read", "_of", "_write_timer")

    def __init__(self, connections: Connections, loop: asyncio.AbstractEventLoop) -> None:
        limits = connections.limits
        # None is aiohttp's own word for no access log, though its annotation does not say so.
        no_log: Any = None
        super().__init__(
            connections,
            loop=loop,
            access_log=no_log,
            keepalive_timeout=limits.keepalive_timeout_s,
            max_headers=limits.max_headers,
            max_line_size=limits.max_header_bytes,
            max_field_size=limits.max_header_bytes,
        )
        self._of = connections
        self._is_counted = False
        self._is_read = False
        self._has_begun_head = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._of.is_full:
            assert isinstance(transport, asyncio.Transport)
            self._of.count_cut("too_many_connections")
            _refuse(transport, self._of.full_error())
            return
        self._of.num_open += 1
        self._is_counted = True
        super().connection_made(transport)
        self._await_head()
        # What comes in one segment with the end of a TLS handshake comes before aiohttp's task waits for a head.
        self._loop.call_soon(self._begin_to_read)

    def _begin_to_read(self) -> None:
        self._is_read = True

    def connection_lost(self, exc: BaseException | None) -> None:
        if not self._is_counted:
            return
        self._of.num_open -= 1
        self._is_counted = False
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._awaits_head:
            self._end_head()
        elif data:
            self._has_begun_head = True
            if self._head_timer is None:
                self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self._loop.call_later(self._of.limits.write_timeout_s, self._on_write_timeout)

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
            error: GatewayError = _explain(exc, message or "", self._of.limits)
            logger.debug("a client sent what is no HTTP", extra={"why": error.message})
        else:
            logger.error("a request failed outside of its handler", exc_info=exc)
            error = GatewayError("The gateway failed to handle this request; its log says why.")
        response = error_response(error)
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
        if not self._is_read:
            return not self._messages
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
        if not self._has_begun_head:
            self.force_close()
            return
        self._of.count_cut("header_timeout")
        _refuse(
            self.transport,
            BadRequest(
                f"The head of the request did not come within {self._of.limits.header_timeout_s:g} s; "
                "send it at once, or raise --header-timeout-s.",
                status=408,
                code="request_timeout",
            ),
        )
        self.force_close()

    def _on_write_timeout(self) -> None:
        self._write_timer = None
        if self.transport is not None:
            self._of.count_cut("write_timeout")
            logger.info("a client takes nothing of its answer and is cut", extra={"client": self.peername})
            # Closing would first wait for what is not taken.
            self.transport.abort()


class Connections(web.Server):
    """Makes a `Connection` for each client, and counts those that are open."""

    def __init__(
        self, server: web.Server, limits: ConnectionLimits, metrics: Metrics, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            server.request_handler,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            loop=loop,
        )
        self.limits = limits
        self.num_open = 0
        self._metrics = metrics
        self._own_loop = loop

    @property
    def is_full(self) -> bool:
        return self.num_open >= self.limits.max_connections

    def full_error(self) -> Unavailable:
        return Unavailable(
            f"This gateway has {self.num_open} connections open, its limit is {self.limits.max_connections} "
            "(--max-connections); try again shortly.",
            code="too_many_connections",
            retry_after_s=1,
        )

    def count_cut(self, reason: str) -> None:
        self._metrics.cut_connections.labels(reason).inc()

    def __call__(self) -> web.RequestHandler:
        return Connection(self, self._own_loop)


class Runner(web.AppRunner):
    """Serves an application over `Connection`s."""

    def __init__(self, app: web.Application, limits: ConnectionLimits, metrics: Metrics, **settings: Any) -> None:
        super().__init__(app, **settings)
        self._limits = limits
        self._metrics = metrics

    async def _make_server(self) -> web.Server:
        return Connections(await super()._make_server(), self._limits, self._metrics, asyncio.get_running_loop())


def _explain(exc: BaseException | None, message: str, limits: ConnectionLimits) -> BadRequest:
    if isinstance(exc, LineTooLong):
        return BadRequest(
            f"The request line or a header is longer than {limits.max_header_bytes} bytes, the limit; send less, or "
            "raise --max-header-bytes.",
            status=431,
            code="headers_too_large",
        )
    if message == TOO_MANY_HEADERS:
        return BadRequest(
            f"The request has more than {limits.max_headers} headers, the limit; send fewer, or raise --max-headers.",
            status=431,
            code="headers_too_large",
        )
    if isinstance(exc, ContentEncodingError):
        return unsupported_coding()
    # What follows the first paragraph is what was sent, which may be a key.
    detail = " ".join(message.partition("\n\n")[0].split())[:MAX_DETAIL_CHARS]
    return BadRequest(f"This is not a valid HTTP request: {detail}", code="invalid_http")


def _refuse(transport: asyncio.Transport, error: GatewayError) -> None:
    """An answer where there is no request to answer."""
    body = error.body()
    extra = "".join(f"{name}: {value}\r\n" for name, value in error.headers.items())
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nServer: octavo\r\n{extra}Connection: close\r\n\r\n"
    )
    transport.write(head.encode() + body)
    transport.close()
