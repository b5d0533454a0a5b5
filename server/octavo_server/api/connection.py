"""One client's connection: what goes wrong before there is a request is told in our shape, and idling is bounded.

aiohttp answers what is no HTTP with plain text and logs a traceback of it; strangers send such bytes all day.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Protocol

from aiohttp import web

from octavo_server.api.error_response import REQUEST_ID_HEADER, ApiError, error_response
from octavo_server.api.state import new_id

logger = logging.getLogger(__name__)

IDLE_TIMEOUT_S = 75.0
"""A connection that has not sent a whole request head for so long, since it opened or since its last answer, is closed.
Above what proxies keep idle connections for, so that it is they who close first."""
MAX_DETAIL_CHARS = 200


class Connection(web.RequestHandler):
    """aiohttp's, but for its errors."""

    __slots__ = ()

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
            detail = " ".join((message or "").split())[:MAX_DETAIL_CHARS]
            error = ApiError(status, f"this is not a valid HTTP request: {detail}", code="invalid_http", close=True)
            logger.debug("a client sent what is no HTTP: %s", detail)
        else:
            logger.error("a request failed outside of its handler", exc_info=exc)
            error = ApiError(500, "the server failed on this request", code="internal_error", close=True)
        response = error_response(error)
        response.headers[REQUEST_ID_HEADER] = new_id()
        return response

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """A body that nobody read and that is not what its headers say is its client's mistake, not ours."""
        if isinstance(kwargs.get("exc_info"), web.RequestPayloadError):
            logger.debug("a client sent a body that is not what its headers say")
            return
        super().log_exception(*args, **kwargs)


class _ConnectionFactory(web.Server):
    """Makes a `Connection` for each client; aiohttp's own makes its own kind."""

    def __init__(self, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server.request_handler,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            loop=loop,
        )
        self._connection_loop = loop

    def __call__(self) -> web.RequestHandler:
        # None is aiohttp's own word for no access log, though its annotation does not say so.
        no_log: Any = None
        return Connection(self, loop=self._connection_loop, access_log=no_log, keepalive_timeout=IDLE_TIMEOUT_S)


class Service(Protocol):
    """Something that works beside the handlers for as long as they do."""

    async def start(self, server: web.Server) -> None:
        """`server` answers on any socket that it is given."""

    async def stop(self) -> None:
        """Before connections are closed."""

    async def aclose(self) -> None:
        """After it."""


class Runner(web.AppRunner):
    """Serves an application over `Connection`s."""

    def __init__(self, app: web.Application, services: Sequence[Service] = (), **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        self._services = tuple(services)

    async def setup(self) -> None:
        """As aiohttp's, and starts the services; where one cannot, nothing stays."""
        await super().setup()
        try:
            for service in self._services:
                assert self.server is not None
                await service.start(self.server)
        except BaseException:
            await self.cleanup()
            raise

    async def cleanup(self) -> None:
        """As aiohttp's, between the two ends of the services."""
        for service in self._services:
            await service.stop()
        await super().cleanup()
        for service in self._services:
            await service.aclose()

    async def _make_server(self) -> web.Server:
        return _ConnectionFactory(await super()._make_server(), asyncio.get_running_loop())
