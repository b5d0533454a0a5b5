"""The adapter's TLS listener: one SSL context whose certificate and CAs change while connections stay open.

Client certificates are asked for, never demanded: a caller with a bearer token has none. What TLS let in is judged
again for each request (`front_proxy.py`), so a CA may be added to the context here but need not be taken out of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator

from aiohttp import web

from octavo_operator.metrics_adapter.connection import ConnectionLimits, Runner

DEFAULT_LIMITS = ConnectionLimits()


class AdapterTls:
    """Owns the SSL context of the listener."""

    def __init__(self) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        # aiohttp speaks HTTP/1.1 only; said in the handshake, so that no client tries HTTP/2 first.
        self.context.set_alpn_protocols(["http/1.1"])
        self._loaded: tuple[bytes, bytes] | None = None
        self._client_ca_pem = ""

    @property
    def is_ready(self) -> bool:
        """Whether there is a certificate to serve with."""
        return self._loaded is not None

    def load_certificate(self, cert_pem: bytes, key_pem: bytes) -> bool:
        """Serve new connections with this certificate; False when it is the one in use.

        Raises:
            ssl.SSLError: certificate and key cannot be read or do not belong together.
        """
        if (cert_pem, key_pem) == self._loaded:
            return False
        with _private_file(cert_pem + b"\n" + key_pem) as path:
            self.context.load_cert_chain(path)
        self._loaded = (cert_pem, key_pem)
        return True

    def ask_for_clients_of(self, client_ca_pem: str) -> bool:
        """Ask new connections for a certificate of these CAs too; False when they are known.

        Raises:
            ssl.SSLError: the PEM text cannot be read.
        """
        if client_ca_pem == self._client_ca_pem:
            return False
        self.context.load_verify_locations(cadata=client_ca_pem)
        self.context.verify_mode = ssl.CERT_OPTIONAL
        self._client_ca_pem = client_ca_pem
        return True


@contextlib.asynccontextmanager
async def listening(
    app: web.Application, tls: AdapterTls, *, host: str, port: int, limits: ConnectionLimits = DEFAULT_LIMITS
) -> AsyncIterator[int]:
    """Serve the application while the context is open; gives the port, which differs from 0 when 0 was asked for."""
    runner = Runner(app, tls.context, limits)
    await runner.setup()
    connections = runner.connections
    try:
        server = await asyncio.get_running_loop().create_server(connections.accept, host, port)
        try:
            bound: int = server.sockets[0].getsockname()[1]
            yield bound
        finally:
            server.close()
            await connections.end_handshakes()
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def _private_file(content: bytes) -> Iterator[str]:
    """A path for `load_cert_chain`, which takes no bytes; on Linux it is memory, so that a read-only root is fine."""
    if sys.platform != "linux":
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            yield file.name
        return
    descriptor = os.memfd_create("octavo-adapter-certificate")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
