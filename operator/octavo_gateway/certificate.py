"""The public port's certificate: a folder with `tls.crt` and `tls.key`, read again when they change, without a restart.

A new pair that does not fit together, or cannot be read, changes nothing: the one before stays, and log and metric say so.
Connections that are open keep what they began with.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BadCertificate

if TYPE_CHECKING:
    from .metrics import Metrics

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 10.0
"""A kubelet brings a changed Secret within a minute or two."""


class Certificate:
    """Owns the TLS context of the moment; `context` is what a server listens with, and hands over to it."""

    def __init__(self, folder: Path, metrics: Metrics) -> None:
        """Raises BadCertificate where there is no pair that fits together."""
        self._folder = folder
        self._metrics = metrics
        self._seen = self._read()
        self._current = self.context = self._load()
        # Each handshake asks for the context of the moment, whether the client names a server or not.
        self.context.sni_callback = self._choose

    def look(self) -> None:
        """Take a changed pair."""
        try:
            found = self._read()
            if found == self._seen:
                return
            self._seen = found
            self._current = self._load()
        except BadCertificate as error:
            self._metrics.tls_reloads.labels(outcome="failed").inc()
            logger.error("the certificate cannot be read anew, the one before stays", extra={"error": str(error)})
            return
        self._metrics.tls_reloads.labels(outcome="ok").inc()
        logger.info("the certificate was read anew", extra={"folder": str(self._folder)})

    async def run(self) -> None:
        """Looks from time to time, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await asyncio.to_thread(self.look)

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current

    def _read(self) -> tuple[bytes, bytes]:
        try:
            return (self._folder / "tls.crt").read_bytes(), (self._folder / "tls.key").read_bytes()
        except OSError as error:
            raise BadCertificate(f"{self._folder} must hold tls.crt and tls.key: {error}") from error

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self._folder / "tls.crt", self._folder / "tls.key")
        except OSError as error:
            raise BadCertificate(
                f"tls.crt and tls.key in {self._folder} are no certificate and its key (PEM): {error}"
            ) from error
        return context
