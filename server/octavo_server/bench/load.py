"""Load on an OpenAI-compatible server: what is sent when, and what came of it.

Closed loop: `concurrency` clients, each sends its next request when its last one has ended. Open loop: a Poisson process
of `rate` requests a second, whatever the server does; with a bound on how many run at once, a request that waits for
its turn is timed from when it was due. Each request opens a connection, which is part of its time. A server that is gone
ends the load: what had finished by then is kept.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp

from octavo_server.bench.client import Target, Timing, answers, send

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo_server.bench.datasets import Ask


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How much load."""

    concurrency: int | None
    """Clients; in open loop how many requests run at once at most, None: no bound."""
    rate: float = 0.0
    """Requests a second; 0: closed loop."""

    @property
    def name(self) -> str:
        if not self.rate:
            return f"{self.concurrency} clients"
        return f"{self.rate:g} req/s" + (f", {self.concurrency} at once" if self.concurrency else "")


@dataclass(slots=True, kw_only=True)
class Round:
    """One run of a level."""

    planned: int
    """Requests that were to be sent."""
    timings: list[Timing] = field(default_factory=list)
    """Of those that were sent and have ended, whatever came of them."""
    wall_s: float = 0.0
    ended: str | None = None
    """Why the load ended early; None: it did not."""

    @property
    def good(self) -> list[Timing]:
        return [timing for timing in self.timings if timing.is_good]

    @property
    def errors(self) -> list[str]:
        """What went wrong, each once."""
        return sorted({timing.error or "an answer without a token" for timing in self.timings if not timing.is_good})

    @property
    def story(self) -> str:
        """What was finished and why it ended; only of a round that ended early."""
        finished, failed = len(self.good), len(self.timings) - len(self.good)
        return (
            f"{finished} of {self.planned} requests had finished, {failed} failed, "
            f"{self.planned - len(self.timings)} were not sent; the server is gone: {self.ended}"
        )


async def run_load(
    target: Target,
    asks: Sequence[Ask],
    level: Level,
    *,
    warmup: int = 0,
    seed: int = 0,
    on_end: Callable[[int, int], None] = lambda done, total: None,
) -> Round:
    """Sends `asks`, the first `warmup` of them alone and untimed; `on_end` hears how many of how many have ended."""
    timed = asks[warmup:]
    load = _Load(target, Round(planned=len(timed)), on_end)
    timeout = aiohttp.ClientTimeout(total=target.timeout_s)
    # Servers may close a connection while it is taken again, and a request that was sent once may not be sent twice.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, read_bufsize=2**20) as session:
        for ask in asks[:warmup]:
            await load.notice_death(await send(session, target, ask))
        started = time.perf_counter()
        if level.rate > 0:
            await load.open_loop(session, timed, level, seed)
        else:
            await load.closed_loop(session, timed, level.concurrency or 1)
        load.round.wall_s = time.perf_counter() - started
    return load.round


class _Load:
    """A round that is under way."""

    def __init__(self, target: Target, round_: Round, on_end: Callable[[int, int], None]) -> None:
        self.round = round_
        self._target = target
        self._on_end = on_end

    async def closed_loop(self, session: aiohttp.ClientSession, asks: Sequence[Ask], concurrency: int) -> None:
        waiting = iter(asks)

        async def client() -> None:
            while self.round.ended is None and (ask := next(waiting, None)) is not None:
                await self._send(session, ask, None)

        await asyncio.gather(*(client() for _ in range(concurrency)))

    async def open_loop(self, session: aiohttp.ClientSession, asks: Sequence[Ask], level: Level, seed: int) -> None:
        rng, due_s = random.Random(seed), time.perf_counter()
        slots = asyncio.Semaphore(level.concurrency or len(asks) or 1)
        tasks = []

        async def one(ask: Ask, due_s: float) -> None:
            async with slots:
                if self.round.ended is None:
                    await self._send(session, ask, due_s)

        for ask in asks:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            if self.round.ended is not None:
                break
            tasks.append(asyncio.create_task(one(ask, due_s)))
            due_s += rng.expovariate(level.rate)
        await asyncio.gather(*tasks)

    async def notice_death(self, timing: Timing) -> None:
        """Ends the load where the connection broke and nothing listens any more."""
        if timing.is_cut_off and self.round.ended is None and not await answers(self._target.url):
            self.round.ended = timing.error

    async def _send(self, session: aiohttp.ClientSession, ask: Ask, due_s: float | None) -> None:
        timing = await send(session, self._target, ask, due_s)
        self.round.timings.append(timing)
        self._on_end(len(self.round.timings), self.round.planned)
        await self.notice_death(timing)
