"""How the server asks itself, for the lines of batches: over a socket that only this machine can reach, like any client.

So a line meets the same checks, limits and counts as a request from outside, and giving it up frees its blocks.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import TYPE_CHECKING, Any

import aiohttp

from octavo_server.api.body import LARGE_BODY_BYTES
from octavo_server.api.error_response import REQUEST_ID_HEADER
from octavo_server.batch.answers import Reply
from octavo_server.batch.runner import AskError

if TYPE_CHECKING:
    from aiohttp import web

BASE = "http://octavo"


class PrivateDoor:
    """An `Asker`. Owns the socket and the session."""

    def __init__(self, api_key: str | None) -> None:
        """`api_key` is one of the server's own."""
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        # A name in Linux' abstract namespace: no file that could be left over, and none that a read-only root forbids.
        self._name = f"\0octavo-{secrets.token_hex(16)}"
        self._server: asyncio.Server | None = None
        self._session: aiohttp.ClientSession | None = None

    async def open(self, server: web.Server) -> None:
        """Lets `server` answer here too."""
        self._server = await asyncio.get_running_loop().create_unix_server(server, self._name)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(self._name, limit=0), timeout=aiohttp.ClientTimeout(total=None)
        )

    async def aclose(self) -> None:
        """Closes what `open` opened."""
        if self._session is not None:
            await self._session.close()
        if self._server is not None:
            self._server.close()

    async def ask(self, url: str, payload: bytes) -> Reply:
        """The server's answer.

        Raises:
            AskError: none came.
        """
        assert self._session is not None
        try:
            async with self._session.post(BASE + url, data=payload, headers=self._headers) as answer:
                raw = await answer.read()
                body = await asyncio.to_thread(_parse, raw) if len(raw) > LARGE_BODY_BYTES else _parse(raw)
                return Reply(status=answer.status, request_id=answer.headers.get(REQUEST_ID_HEADER, ""), body=body)
        except (aiohttp.ClientError, OSError) as error:
            raise AskError(str(error)) from error


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode("utf-8", "replace")
