"""What one client has been sent so far, and how an answer or an error goes on from there.

| sent so far                 | an upstream's answer        | an error |
|-----------------------------|-----------------------------|----------|
| nothing                     | its status, headers, bytes  | JSON with its status |
| heartbeats of a held stream | its events                  | ``data: {"error": …}``, ``data: [DONE]`` |
| a part of an upstream's SSE | its further bytes           | the same two events |
| a part of another body      | its further bytes           | the connection is cut: a short body must not look whole |
"""

from __future__ import annotations

import json

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from . import headers
from .errors import GatewayError, UpstreamFailed, UpstreamStalled, error_body
from .upstream import StallLimit
from .usage import UsageReader

EVENT_STREAM = "text/event-stream"
HEARTBEAT = b": waiting for a replica\n\n"
MAX_ERROR_BYTES = 64 * 1024
ANSWERS = range(200, 600)
"""Status codes of answers; 101 above all would make a tunnel of a connection that clients share."""


class ClientGone(Exception):
    """The client closed its connection."""


class Reply:
    def __init__(self, request: web.Request, request_id: str, *, close: bool = False) -> None:
        self.code = 0
        """Status for the metrics; an error inside a stream counts as its own status."""
        self.request_id = request_id
        self._request = request
        self._close = close
        self._response: web.StreamResponse | None = None

    @property
    def is_event_stream(self) -> bool:
        return self._response is not None and self._response.content_type == EVENT_STREAM

    async def heartbeat(self) -> None:
        if self._response is None:
            sse = {"Content-Type": EVENT_STREAM, "Cache-Control": "no-cache"}
            await self._start(200, CIMultiDict(sse))
        await self._write(HEARTBEAT)

    async def pass_on(
        self, upstream: aiohttp.ClientResponse, reader: UsageReader | None = None, *, stall_timeout_s: float = 0.0
    ) -> web.StreamResponse:
        """Send an upstream's answer, each piece as it comes; what a reader takes out of it is not sent.

        Raises UpstreamFailed where it is none, breaks off, or is silent for `stall_timeout_s` (0 is no limit).
        """
        if upstream.status not in ANSWERS:
            raise UpstreamFailed(f"The replica answered with status {upstream.status}, which is no answer; ask again.")
        stall = StallLimit(stall_timeout_s)
        last = b""
        try:
            async with stall:
                if self._response is not None and not _is_good_stream(upstream):
                    return await self._pass_on_as_event(upstream)
                if self._response is None:
                    await self._start(upstream.status, headers.to_client(upstream.headers))
                self.code = upstream.status
                async for piece in upstream.content.iter_any():
                    stall.hear()
                    shown = reader.feed(piece) if reader is not None else piece
                    if upstream.content.at_eof():
                        # Goes out with the end of the answer, in one packet.
                        last = shown
                    elif shown:
                        await self._write(shown)
                    stall.wait()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if stall.is_over:
                raise UpstreamStalled(
                    f"The replica was silent for {stall_timeout_s:g} s in the middle of its answer; ask again."
                ) from error
            raise UpstreamFailed("The replica broke off in the middle of its answer; ask again.") from error
        rest = reader.end() if reader is not None else b""
        return await self._finish(last + rest)

    async def fail(self, error: GatewayError) -> web.StreamResponse:
        self.code = error.status
        if self._response is None:
            response = error_response(error)
            self._decorate(response)
            return response
        if not self.is_event_stream:
            return self.cut()
        return await self._end_with_event(error.body())

    def cut(self) -> web.StreamResponse:
        """Close the connection in the middle of what was begun."""
        assert self._response is not None
        if self._request.transport is not None:
            self._request.transport.abort()
        return self._response

    async def _pass_on_as_event(self, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
        """An upstream's error, or its unstreamed answer, once the status 200 of an event stream has gone out."""
        self.code = upstream.status
        try:
            body = json.loads(await upstream.content.read(MAX_ERROR_BYTES))
        except (ValueError, aiohttp.ClientError):
            body = None
        if not isinstance(body, dict):
            return await self._end_with_event(
                error_body(f"The replica answered with status {upstream.status}.", kind="server_error")
            )
        return await self._end_with_event(json.dumps(body).encode())

    async def _end_with_event(self, data: bytes) -> web.StreamResponse:
        # The leading blank line ends an event that the upstream may have left half written.
        await self._write(b"\n\ndata: " + data + b"\n\ndata: [DONE]\n\n")
        return await self._finish()

    async def _start(self, status: int, sent: CIMultiDict[str]) -> None:
        length = sent.popall("Content-Length", [])
        response = web.StreamResponse(status=status, headers=sent)
        if length:
            response.content_length = int(length[0])
        self._decorate(response)
        self._response = response
        self.code = status
        try:
            await response.prepare(self._request)
        except ValueError as error:
            # Nothing has been sent, so the failure itself can be answered.
            self._response = None
            raise UpstreamFailed("The replica answered with headers that are no HTTP; ask again.") from error
        except (ConnectionError, aiohttp.ClientConnectionError) as error:
            raise ClientGone from error

    async def _write(self, data: bytes) -> None:
        assert self._response is not None
        try:
            await self._response.write(data)
        except (ConnectionError, aiohttp.ClientConnectionError) as error:
            raise ClientGone from error

    async def _finish(self, last: bytes = b"") -> web.StreamResponse:
        assert self._response is not None
        try:
            await self._response.write_eof(last)
        except (ConnectionError, aiohttp.ClientConnectionError) as error:
            raise ClientGone from error
        return self._response

    def _decorate(self, response: web.StreamResponse) -> None:
        response.headers[headers.REQUEST_ID] = self.request_id
        if self._close:
            response.force_close()


def error_response(error: GatewayError) -> web.Response:
    """An error where nothing has been sent yet."""
    response = web.Response(
        status=error.status, body=error.body(), content_type="application/json", headers=error.headers
    )
    if "Connection" in error.headers:
        response.force_close()
    return response


def _is_good_stream(upstream: aiohttp.ClientResponse) -> bool:
    return upstream.status == 200 and upstream.content_type == EVENT_STREAM
