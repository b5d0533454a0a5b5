"""What keeps quotas going beside the requests: reports to owners, saved days, and who is ready."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Protocol

from .errors import KubeApiError
from .metrics import Metrics
from .quotas import FLUSH_EVERY_S, SAVE_EVERY_S, DayStore, Quotas

logger = logging.getLogger(__name__)

TRY_AGAIN_S = 5.0


class QuotaBackend(DayStore, Protocol):
    """The cluster, as far as quotas need it."""

    async def watch_ready(self, told: Callable[[Iterable[str]], None]) -> None: ...

    async def peer_secret(self) -> bytes: ...


class QuotaLoops:
    """Owns the secret that gateways share; without a backend this gateway is alone, and days end with it."""

    def __init__(self, quotas: Quotas, backend: QuotaBackend | None, metrics: Metrics) -> None:
        self._quotas = quotas
        self._backend = backend
        self._metrics = metrics
        self._must_load = asyncio.Event()
        self.secret = b""

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._flush_for_ever())
            if self._backend is not None:
                group.create_task(self._backend.watch_ready(self._on_ready))
                group.create_task(self._read_secret(self._backend))
                group.create_task(self._save_for_ever(self._backend))
                group.create_task(self._load_for_ever(self._backend))

    async def close(self) -> None:
        """Tell and save what is still to be told and saved; for the end of a drain."""
        await self._quotas.flush()
        if self._backend is not None:
            await self._try("save", partial(self._quotas.save, self._backend))

    def _on_ready(self, addresses: Iterable[str]) -> None:
        self._quotas.set_ready(addresses)
        # An owner before may have saved what its successor does not know.
        self._must_load.set()

    async def _flush_for_ever(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            await self._quotas.flush()

    async def _save_for_ever(self, store: DayStore) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            await self._try("save", partial(self._quotas.save, store))

    async def _load_for_ever(self, store: DayStore) -> None:
        self._must_load.set()
        while True:
            await self._must_load.wait()
            self._must_load.clear()
            if not await self._try("load", partial(self._quotas.load, store)):
                await asyncio.sleep(TRY_AGAIN_S)
                self._must_load.set()

    async def _read_secret(self, backend: QuotaBackend) -> None:
        async def read() -> None:
            self.secret = await backend.peer_secret()

        while not await self._try("secret", read):
            await asyncio.sleep(TRY_AGAIN_S)

    async def _try(self, what: str, act: Callable[[], Awaitable[None]]) -> bool:
        try:
            await act()
        except KubeApiError as error:
            self._metrics.source_errors.labels("quota").inc()
            logger.warning("quotas: no success at the API server", extra={"what": what, "why": str(error)})
            return False
        return True
