"""Reads the Secrets that models take their keys from, again and again, so that a changed key counts within seconds.

By GET alone: the right to watch Secrets is the right to list them all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Protocol

from .endpoints import RoutingTable
from .errors import KubeApiError
from .keys import Keyring
from .metrics import Metrics

logger = logging.getLogger(__name__)

POLL_EVERY_S = 3.0
PER_SECRET_S = 0.05
"""With many Secrets a round takes longer, so that one gateway asks for at most 20 a second."""
MAX_AT_ONCE = 8
MAX_NAMED = 10
"""Entries in a line of the log."""
REFUSALS = frozenset({403, 404})
"""The Secret is gone or no longer ours to read; any other failure says nothing of it, and what was read last stands."""


class ReadsSecrets(Protocol):
    async def read_secret(self, namespace: str, name: str) -> Mapping[str, bytes]:
        """A Secret's entries; raises KubeApiError."""
        ...


class KeyPoller:
    """Owns why each Secret that cannot be read cannot; keys themselves go into the keyring."""

    def __init__(self, source: ReadsSecrets, keyring: Keyring, metrics: Metrics) -> None:
        self._source = source
        self._keyring = keyring
        self._metrics = metrics
        self._wanted: frozenset[str] = frozenset()
        self._new = asyncio.Event()
        self._troubles: dict[str, str] = {}
        self._at_once = asyncio.Semaphore(MAX_AT_ONCE)
        self.is_synced = True
        """Every Secret of the present table has been asked for."""

    def follow(self, table: RoutingTable) -> None:
        wanted = table.key_secrets
        if wanted - self._wanted:
            self.is_synced = False
            self._new.set()
        self._wanted = wanted
        self._keyring.keep_only(wanted)
        self._troubles = {secret: why for secret, why in self._troubles.items() if secret in wanted}
        self._metrics.unreadable_secrets.set(len(self._troubles))

    async def run(self) -> None:
        """New Secrets first, then all of them in rounds."""
        known: frozenset[str] = frozenset()
        while True:
            self._new.clear()
            wanted = self._wanted
            await self._read(wanted - known)
            self.is_synced = self._wanted <= wanted
            known = wanted
            if await self._is_told_within(max(POLL_EVERY_S, PER_SECRET_S * len(wanted))):
                continue
            await self._read(wanted & self._wanted)

    async def _is_told_within(self, pause_s: float) -> bool:
        try:
            await asyncio.wait_for(self._new.wait(), pause_s)
        except TimeoutError:
            return False
        return True

    async def _read(self, secrets: Iterable[str]) -> None:
        await asyncio.gather(*map(self._read_one, secrets))

    async def _read_one(self, secret: str) -> None:
        namespace, _, name = secret.partition("/")
        async with self._at_once:
            try:
                entries = await self._source.read_secret(namespace, name)
            except KubeApiError as error:
                self._fail(secret, error)
                return
        if secret not in self._wanted:
            return
        useless = self._keyring.put(secret, entries)
        if useless:
            logger.warning(
                "entries of a Secret can be no keys; write one key into each, without a line end in it",
                extra={"secret": secret, "entries": useless[:MAX_NAMED], "number": len(useless)},
            )
        if self._troubles.pop(secret, None) is not None:
            logger.info("keys can be read again", extra={"secret": secret})
        self._metrics.unreadable_secrets.set(len(self._troubles))

    def _fail(self, secret: str, error: KubeApiError) -> None:
        if secret not in self._wanted:
            return
        self._metrics.source_errors.labels("secret").inc()
        if error.status in REFUSALS:
            self._keyring.forget(secret)
        if self._keyring.is_read(secret):
            return
        if self._troubles.get(secret) != str(error):
            logger.warning("keys cannot be read", extra={"secret": secret, "why": str(error)})
        self._troubles[secret] = str(error)
        self._metrics.unreadable_secrets.set(len(self._troubles))
