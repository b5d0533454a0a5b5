"""Server-sent events: one `data:` line an event, and `[DONE]` at the end of those whose last event does not say so."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from octavo_server.api.error_response import error_body

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from octavo_server.api.error_response import ApiError

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # Tells nginx and its kind to pass each event on at once.
    "X-Accel-Buffering": "no",
}
WRITE_TIMEOUT_S = 300.0
"""A client that takes nothing of what waits for it for so long is given up; else it would hold its answer for ever."""
_encode = msgspec.json.encode


class EventStream:
    """One response that is being written. A write waits while the client's buffer is full."""

    def __init__(self, request: web.Request, headers: Mapping[str, str]) -> None:
        self._request = request
        self._response = web.StreamResponse(headers={**_HEADERS, **headers})

    async def open(self) -> None:
        """Sends the status and the headers."""
        await self._response.prepare(self._request)

    async def send(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Sends events in one write."""
        data = b"".join([b"data: %b\n\n" % _encode(event) for event in events])
        if data:
            await self._write(data)

    async def send_named(self, events: Iterable[Mapping[str, Any]]) -> None:
        """As `send`, each under its own name, its `type`, as the Responses API has it."""
        data = b"".join([b"event: %b\ndata: %b\n\n" % (event["type"].encode(), _encode(event)) for event in events])
        if data:
            await self._write(data)

    async def finish(self) -> web.StreamResponse:
        """Ends a stream whose last event says by itself that it is the last."""
        await self._write(b"", is_last=True)
        return self._response

    async def close(self, error: ApiError | None = None) -> web.StreamResponse:
        """Ends the stream, after an event of what went wrong, if anything did."""
        event = "" if error is None else f"data: {error_body(error)}\n\n"
        await self._write(f"{event}data: [DONE]\n\n".encode(), is_last=True)
        return self._response

    async def _write(self, data: bytes, *, is_last: bool = False) -> None:
        """Writes, unless the client takes nothing for too long: then it counts as gone.

        Raises:
            ConnectionResetError: it is gone.
        """
        transport = self._request.transport
        if not is_last and (transport is None or _takes(transport, len(data))):
            await self._response.write(data)
            return
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                if data:
                    # An empty chunk would end the body.
                    await self._response.write(data)
                if is_last:
                    await self._response.write_eof()
        except TimeoutError as error:
            if transport is not None:
                # Closing would first wait for what is not taken.
                transport.abort()
            raise ConnectionResetError(f"the client took nothing for {WRITE_TIMEOUT_S:g} s") from error


def _takes(transport: asyncio.Transport, size: int) -> bool:
    """Whether so many bytes leave without waiting for the client; a timer for each event would cost more than it."""
    low, _ = transport.get_write_buffer_limits()
    return transport.get_write_buffer_size() + size <= low
