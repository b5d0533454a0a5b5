"""The gateway as a whole: two ports, the source of its routing table, and how it starts, drains and ends.

Public port: OpenAI's API over all models. Internal port: /metrics /healthz /readyz /held, and /quota
for other gateways.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import aiohttp
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from .audit import AuditLog
from .balancer import Balancer
from .call import CallReader
from .certificate import Certificate
from .config import GatewayConfig
from .connection import ConnectionLimits, Runner
from .endpoints import Model, RoutingTable
from .errors import CannotListen
from .key_poller import KeyPoller
from .keys import Gate, Keyring
from .load_poller import LoadPoller
from .metrics import Metrics
from .proxy import Bounds, Proxy
from .public_api import PublicApi
from .quota_loops import QuotaBackend, QuotaLoops
from .quota_wire import (
    MAX_MESSAGE_BYTES,
    SIGNATURE,
    BadMessage,
    HttpPeers,
    check_signature,
    decode_question,
    encode_grants,
)
from .quota_wire import PATH as QUOTA_PATH
from .quotas import Quotas
from .request_body import BodyLimits
from .request_log import RequestLog
from .router import Router
from .tracing import Tracing, open_tracing
from .upstream import new_session
from .waker import Waker

logger = logging.getLogger(__name__)

RESTART_AFTER_S = 1.0


class Source(Protocol):
    """Where models and replicas come from; publishes whole tables and never returns while it has more to say."""

    @property
    def quota_backend(self) -> QuotaBackend | None: ...

    async def run(self) -> None: ...

    async def wake(self, model: Model) -> None: ...

    async def read_secret(self, namespace: str, name: str) -> Mapping[str, bytes]: ...


MakeSource = Callable[[Callable[[RoutingTable], None], Metrics], Source]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a gateway is made of; each is the only one of its kind."""

    router: Router
    proxy: Proxy
    waker: Waker
    public: PublicApi
    key_poller: KeyPoller
    quotas: Quotas
    quota_loops: QuotaLoops
    audit: AuditLog
    tracing: Tracing
    metrics: Metrics


class Gateway:
    """A running gateway; made by ``running_gateway``, which opens and closes what it uses."""

    def __init__(self, parts: Parts) -> None:
        self.router = parts.router
        self.proxy = parts.proxy
        self.waker = parts.waker
        self.metrics = parts.metrics
        self._public = parts.public
        self._key_poller = parts.key_poller
        self._quotas = parts.quotas
        self._quota_loops = parts.quota_loops
        self.port = 0
        self.internal_port = 0
        self._public_site: web.BaseSite | None = None

    @property
    def is_ready(self) -> bool:
        return self.router.table.is_complete and self._key_poller.is_synced and not self.proxy.is_draining

    async def listen(
        self, public: web.AppRunner, internal: web.AppRunner, config: GatewayConfig, tls: ssl.SSLContext | None
    ) -> None:
        self._public_site = await _listen(public, config.host, config.port, tls)
        await _listen(internal, config.host, config.internal_port)
        self.port = public.addresses[0][1]
        self.internal_port = internal.addresses[0][1]
        logger.info("gateway listens", extra={"port": self.port, "internal_port": self.internal_port})

    async def drain(self, *, delay_s: float, timeout_s: float) -> None:
        """Turn unready, take requests for ``delay_s`` more, then let what runs finish within ``timeout_s``."""
        self.proxy.is_draining = True
        logger.info("gateway drains", extra={"in_flight": self.proxy.in_flight})
        await asyncio.sleep(delay_s)
        if self._public_site is not None:
            await self._public_site.stop()
        if not await self.proxy.wait_idle(timeout_s):
            logger.warning("requests were cut by the shutdown time-out", extra={"in_flight": self.proxy.in_flight})
        await self.proxy.stop()
        await self._quota_loops.close()

    def public_app(self) -> web.Application:
        return self._public.application()

    def internal_app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_MESSAGE_BYTES)
        app.router.add_post(QUOTA_PATH, self._quota)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/held", self._held)
        return app

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self.metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if self.is_ready:
            return web.Response(text="ok\n")
        why = "draining" if self.proxy.is_draining else "models, pods and keys have not been read yet"
        return web.Response(status=503, text=why + "\n")

    async def _held(self, _: web.Request) -> web.Response:
        return web.json_response({"held": self.router.admission.held(), "last_wake": self.waker.last_wake})

    async def _quota(self, request: web.Request) -> web.Response:
        """Another gateway's question to the owner of keys' quotas."""
        body = await request.read()
        try:
            check_signature(self._quota_loops.secret, body, request.headers.get(SIGNATURE, ""), time.time())
            gateway, entries = decode_question(body)
        except BadMessage as error:
            return web.Response(status=403, text=f"{error}\n")
        return web.Response(body=encode_grants(self._quotas.answer(gateway, entries)))


@contextlib.asynccontextmanager
async def running_gateway(config: GatewayConfig, make_source: MakeSource, rng: random.Random) -> AsyncIterator[Gateway]:
    """Open everything, listen, and close everything at the end; ``drain`` first for a graceful end."""
    metrics = Metrics()
    certificate = Certificate(Path(config.tls_dir), metrics) if config.tls_dir else None
    balancer = Balancer(rng, on_spill=lambda key: metrics.spills.labels(key).inc())
    router = Router(balancer, metrics)
    source = make_source(router.publish, metrics)
    async with (
        new_session(config.connect_timeout_s) as session,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as poll_session,
    ):
        parts = _make_parts(config, source, router, metrics, session, poll_session)
        gateway = Gateway(parts)
        poller = LoadPoller(router, poll_session, rng)
        limits = _connection_limits(config)
        # handler_cancellation: a client that leaves cancels its handler, which closes the upstream at once.
        public = Runner(gateway.public_app(), limits, metrics, handler_cancellation=True, shutdown_timeout=1.0)
        internal = Runner(gateway.internal_app(), limits, metrics, shutdown_timeout=1.0)
        loops = {
            "source": source.run,
            "waker": parts.waker.run,
            "keys": parts.key_poller.run,
            "quotas": parts.quota_loops.run,
        }
        if certificate is not None:
            loops["certificate"] = certificate.run
        tasks = [asyncio.create_task(_survive(what, run)) for what, run in loops.items()]
        try:
            await public.setup()
            await internal.setup()
            await gateway.listen(public, internal, config, certificate.context if certificate else None)
            yield gateway
        finally:
            await public.cleanup()
            await internal.cleanup()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await poller.close()
            await parts.tracing.close()
            await asyncio.to_thread(parts.audit.close)


def _make_parts(
    config: GatewayConfig,
    source: Source,
    router: Router,
    metrics: Metrics,
    session: aiohttp.ClientSession,
    poll_session: aiohttp.ClientSession,
) -> Parts:
    keyring = Keyring(os.urandom(32))
    gate, key_poller = Gate(keyring), KeyPoller(source, keyring, metrics)
    router.on_table(key_poller.follow)
    secret: Callable[[], bytes] = lambda: quota_loops.secret  # noqa: E731
    quotas = Quotas(
        me=config.own_address or "alone",
        boot=uuid.uuid4().hex[:8],
        peers=HttpPeers(poll_session, port=config.internal_port, secret=secret, wall_clock=time.time),
        metrics=metrics,
        clock=time.monotonic,
        wall_clock=time.time,
    )
    quota_loops = QuotaLoops(quotas, source.quota_backend, metrics)
    audit, tracing = AuditLog(config.audit_log, metrics), open_tracing(config.otlp_traces_endpoint)
    log = RequestLog(metrics, audit, tracing)
    bounds = Bounds(
        body=BodyLimits(
            max_bytes=config.max_request_bytes, silence_s=config.body_silence_s, whole_s=config.body_timeout_s
        ),
        max_buffered_bytes=config.max_buffered_bytes,
        stall_timeout_s=config.stall_timeout_s,
        first_byte_timeout_s=config.first_byte_timeout_s,
        request_timeout_s=config.request_timeout_s,
    )
    waker = Waker(router, source, metrics)
    calls = CallReader(router, gate, quotas)
    proxy = Proxy(router, calls, log, metrics, session, bounds=bounds, refused_wakes=waker.refused)
    return Parts(
        router=router,
        proxy=proxy,
        waker=waker,
        public=PublicApi(router, gate, proxy, max_request_bytes=config.max_request_bytes),
        key_poller=key_poller,
        quotas=quotas,
        quota_loops=quota_loops,
        audit=audit,
        tracing=tracing,
        metrics=metrics,
    )


def _connection_limits(config: GatewayConfig) -> ConnectionLimits:
    return ConnectionLimits(**{limit.name: getattr(config, limit.name) for limit in fields(ConnectionLimits)})


async def _survive(what: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run a loop that must not end with an unforeseen error; it is logged with its traceback and begun again."""
    while True:
        try:
            await run()
            return
        except Exception:
            logger.exception("a loop of the gateway failed; it starts again", extra={"loop": what})
            await asyncio.sleep(RESTART_AFTER_S)


async def _listen(runner: web.AppRunner, host: str, port: int, tls: ssl.SSLContext | None = None) -> web.TCPSite:
    site = web.TCPSite(runner, host or None, port, backlog=1024, ssl_context=tls)
    try:
        await site.start()
    except OSError as error:
        raise CannotListen(host, port, error) from error
    return site
