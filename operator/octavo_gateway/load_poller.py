"""Reads each ready replica's ``/load`` once a second: the pressure that the balancer decides on."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from typing import Any

import aiohttp

from .balancer import Load
from .endpoints import RoutingTable
from .router import Router

logger = logging.getLogger(__name__)

POLL_EVERY_S = 1.0
POLL_TIMEOUT_S = 2.0
MAX_ANSWER_BYTES = 64 * 1024
MAX_VALUE = 1e9
"""Of pressure, and of sequences; a greater number is no measurement."""


class LoadPoller:
    """Owns one task per ready replica, so that a slow one delays no other."""

    def __init__(self, router: Router, session: aiohttp.ClientSession, rng: random.Random) -> None:
        self._router = router
        self._session = session
        self._rng = rng
        self._tasks: dict[str, asyncio.Task[None]] = {}
        router.on_table(self.follow)

    def follow(self, table: RoutingTable) -> None:
        wanted = {replica.url for model in table.models.values() for replica in model.replicas if replica.is_routable}
        for url in self._tasks.keys() - wanted:
            self._tasks.pop(url).cancel()
        for url in wanted - self._tasks.keys():
            self._tasks[url] = asyncio.get_running_loop().create_task(self._poll_for_ever(url))

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _poll_for_ever(self, url: str) -> None:
        while True:
            load = await self._read(url)
            if load is not None:
                self._router.report_load(url, load)
            # Spread over the second, so that a thousand replicas are not asked in one burst.
            await asyncio.sleep(POLL_EVERY_S * self._rng.uniform(0.9, 1.1))

    async def _read(self, url: str) -> Load | None:
        try:
            async with self._session.get(
                url + "/load", timeout=aiohttp.ClientTimeout(total=POLL_TIMEOUT_S), allow_redirects=False
            ) as response:
                if response.status != 200:
                    return None
                return parse_load(json.loads(await _read_short(response.content)))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError):
            logger.debug("no load reading", extra={"url": url})
            return None


def parse_load(answer: Any) -> Load:
    """Raises ValueError for what is not a ``/load`` answer: each number is between 0 and `MAX_VALUE`, or there is none."""
    try:
        pressure, running, waiting = (float(answer[name]) for name in ("pressure", "running", "waiting"))
        draining = answer.get("draining") is True
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError("not a /load answer") from error
    # NaN is in no range.
    if not all(0 <= value <= MAX_VALUE for value in (pressure, running, waiting)):
        raise ValueError(f"pressure {pressure:g}, running {running:g}, waiting {waiting:g} are no load")
    return Load(pressure=pressure, running=int(running), waiting=int(waiting), draining=draining)


async def _read_short(content: aiohttp.StreamReader) -> bytes:
    read = bytearray()
    while piece := await content.readany():
        read += piece
        if len(read) > MAX_ANSWER_BYTES:
            raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes")
    return bytes(read)
