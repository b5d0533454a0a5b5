"""Server-sent events: one `data:` line an event, `[DONE]` at the end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aiohttp import web

from octavo_server.api.error_response import error_body

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # Tells nginx and its kind to pass each event on at once.
    "X-Accel-Buffering": "no",
}
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


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
        text = "".join([f"data: {_encode(event)}\n\n" for event in events])
        if text:
            await self._response.write(text.encode("utf-8"))

    async def close(
        self, error: str | None = None, *, status: int = 500, code: str | None = None
    ) -> web.StreamResponse:
        """Ends the stream, after an error event where there was one."""
        event = "" if error is None else f"data: {error_body(status, error, code=code)}\n\n"
        await self._response.write(f"{event}data: [DONE]\n\n".encode())
        await self._response.write_eof()
        return self._response
