"""Reads each ready replica's ``/load`` once a second: the pressure that the balancer decides on."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from typing import Any

import aiohttp

from .balancer import Load
from .endpoints import RoutingTable
from .router import Router

logger = logging.getLogger(__name__)

POLL_EVERY_S = 1.0
POLL_TIMEOUT_S = 2.0


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
                return parse_load(await response.json(content_type=None))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            logger.debug("no load reading", extra={"url": url})
            return None


def parse_load(answer: Any) -> Load:
    """Raises ValueError for what is not a ``/load`` answer; pressure that is not a finite number ≥ 0 is none."""
    try:
        pressure = float(answer["pressure"])
        running, waiting = int(answer["running"]), int(answer["waiting"])
        draining = answer.get("draining") is True
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError("not a /load answer") from error
    if not math.isfinite(pressure) or pressure < 0:
        raise ValueError("pressure is not a finite number")
    return Load(pressure=pressure, running=running, waiting=waiting, draining=draining)
