"""One attempt on one replica: connect, send, and say what came of it before the first byte is passed on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import aiohttp
from aiohttp import AddrInfoType
from multidict import CIMultiDict
from yarl import URL

# A replica whose node died sends no RST; these probes notice it within about half a minute.
_KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_POOL_IDLE_S = 15.0


class AttemptFailed(Exception):
    """No byte of an answer came; ``was_sent`` tells whether the replica may have begun to work on it."""

    def __init__(self, reason: str, *, was_sent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.was_sent = was_sent


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamRequest:
    """What is sent, the same to each replica that is tried."""

    path_qs: str
    headers: CIMultiDict[str]
    body: bytes | None
    method: str = "POST"


def new_session(connect_timeout_s: float) -> aiohttp.ClientSession:
    """The session of all proxied requests: no total time-out, since an answer may stream for hours."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_POOL_IDLE_S, socket_factory=_socket),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def send(
    session: aiohttp.ClientSession, base_url: str, request: UpstreamRequest, *, first_byte_timeout_s: float
) -> aiohttp.ClientResponse:
    """The response once its head is there."""
    limit = asyncio.timeout(first_byte_timeout_s or None)
    try:
        async with limit:
            return await session.request(
                request.method,
                URL(base_url + request.path_qs, encoded=True),
                data=request.body,
                headers=request.headers,
                allow_redirects=False,
            )
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise AttemptFailed("connect", was_sent=False) from error
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise AttemptFailed("timeout" if limit.expired() else "disconnected", was_sent=True) from error


class StallLimit:
    """Ends the block that it surrounds with a TimeoutError when a replica was silent for too long.

    One timer looks from time to time; one for each piece of an answer would cost more than passing it on.
    """

    def __init__(self, limit_s: float) -> None:
        """Seconds; 0 is no limit."""
        self._limit_s = limit_s
        self._silent_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timeout = asyncio.timeout(None)
        self._clock: Callable[[], float]

    @property
    def is_over(self) -> bool:
        return self._timeout.expired()

    def wait(self) -> None:
        """It is the replica's turn again."""
        self._silent_since = self._clock()

    def hear(self) -> None:
        """It said something; until `wait`, time passes for somebody else."""
        self._silent_since = None

    async def __aenter__(self) -> StallLimit:
        self._clock = asyncio.get_running_loop().time
        await self._timeout.__aenter__()
        self.wait()
        if self._limit_s:
            self._look_in(self._limit_s)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _look_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        now = self._clock()
        left = self._limit_s if self._silent_since is None else self._silent_since + self._limit_s - now
        if left > 0:
            self._look_in(left)
        else:
            self._timeout.reschedule(now)


def _socket(address: AddrInfoType) -> socket.socket:
    family, kind, proto, *_ = address
    made = socket.socket(family, kind, proto)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made
