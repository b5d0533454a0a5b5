"""One file from or to an http(s) address, streamed; for `octavo run-batch`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from octavo_server.errors import OctavoError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHUNK_BYTES = 2**18
STALL_S = 60.0
"""A transfer that does not move for so long is given up."""
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=STALL_S, sock_read=STALL_S)


class TransferError(OctavoError):
    """The file could not be fetched or sent."""


def is_remote(location: str) -> bool:
    """Whether it is an address and no path."""
    return location.startswith(("http://", "https://"))


async def fetch_file(url: str, to: Path) -> None:
    """GETs `url` into the file `to`.

    Raises:
        TransferError: naming the address and the reason.
    """
    try:
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session, session.get(url) as answer:
            if answer.status != 200:
                raise TransferError(f"GET {_shown(url)} answered {answer.status}; a file is needed")
            with to.open("wb") as file:
                async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                    await asyncio.to_thread(file.write, chunk)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise TransferError(f"GET {_shown(url)} failed: {_reason(error)}") from error


async def send_file(path: Path, url: str) -> None:
    """PUTs the file to `url`, as object stores take it under a signed address.

    Raises:
        TransferError: naming the address and the reason.
    """
    headers = {"Content-Type": "application/jsonl", "Content-Length": str(path.stat().st_size)}
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            session.put(url, data=_chunks(path), headers=headers) as answer,
        ):
            if answer.status not in (200, 201, 204):
                raise TransferError(f"PUT {_shown(url)} answered {answer.status}; the results are in {path}")
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise TransferError(f"PUT {_shown(url)} failed: {_reason(error)}; the results are in {path}") from error


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk


def _shown(url: str) -> str:
    """Without the query, which holds signatures."""
    return url.partition("?")[0][:200]


def _reason(error: Exception) -> str:
    return "nothing came for a while" if isinstance(error, TimeoutError) else type(error).__name__
