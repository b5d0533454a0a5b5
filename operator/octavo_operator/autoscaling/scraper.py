"""Reads `/load` of every serving pod again and again into the MetricsStore.

One pod that hangs must never delay another for long: each read has its own short time-out and only `max_concurrent`
run at once. A failed read writes nothing; the store lets the last load grow stale by itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import aiohttp

from octavo_operator.autoscaling.pod_http import PodAnswerError, count, get_object, number, pod_url
from octavo_operator.metrics_adapter.store import MetricsStore, PodLoad, ServerPod

logger = logging.getLogger(__name__)

SERVER_PORT = 8000


class Scraper:
    """Owns the HTTP session to the pods and the set of pods that do not answer."""

    def __init__(
        self,
        store: MetricsStore,
        list_pods: Callable[[], Iterable[ServerPod]],
        *,
        now: Callable[[], float] = time.time,
        interval_s: float = 2.0,
        timeout_s: float = 1.5,
        port: int = SERVER_PORT,
    ) -> None:
        self._store = store
        self._list_pods = list_pods
        self._now = now
        self._interval_s = interval_s
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._port = port
        self._silent: set[str] = set()

    async def run(self, on_round: Callable[[], None] | None = None) -> None:
        """Scrape until cancelled; `on_round` is called after each round, when the store is as fresh as it gets."""
        clock = asyncio.get_running_loop().time
        async with self.session() as session:
            while True:
                started = clock()
                await self.scrape_once(session)
                if on_round is not None:
                    on_round()
                await asyncio.sleep(max(0.0, started + self._interval_s - clock()))

    def session(self) -> aiohttp.ClientSession:
        """The session for `scrape_once`; who opens it closes it."""
        connector = aiohttp.TCPConnector(limit=64, limit_per_host=1)
        return aiohttp.ClientSession(timeout=self._timeout, connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    async def scrape_once(self, session: aiohttp.ClientSession) -> None:
        """One round over the pods that serve now; returns when each has answered or run out of time."""
        pods = [pod for pod in self._list_pods() if pod.is_serving]
        uids = {pod.uid for pod in pods}
        self._store.retain(uids)
        self._silent &= uids
        await asyncio.gather(*(self._scrape(session, pod) for pod in pods))

    async def _scrape(self, session: aiohttp.ClientSession, pod: ServerPod) -> None:
        try:
            answer = await get_object(session, pod_url(pod.ip, self._port, "/load"))
            load = parse_load(answer, at=self._now())
        except PodAnswerError as error:
            self._say_silent(pod, error)
            return
        self._silent.discard(pod.uid)
        self._store.put(pod.uid, load)

    def _say_silent(self, pod: ServerPod, error: PodAnswerError) -> None:
        """One warning when a pod falls silent, not one every two seconds."""
        if pod.uid in self._silent:
            return
        self._silent.add(pod.uid)
        logger.warning(
            "a ready pod does not report its load; it is left out of autoscaling until it does",
            extra={"pod": f"{pod.namespace}/{pod.name}", "error": str(error)},
        )


def parse_load(answer: dict[str, Any], *, at: float) -> PodLoad:
    """A `/load` answer as a value.

    Raises:
        PodAnswerError: a field is absent or of another type; it names the field.
    """
    draining = answer.get("draining")
    if not isinstance(draining, bool):
        raise PodAnswerError(f"field draining is {draining!r}, wanted true or false")
    return PodLoad(
        pressure=number(answer, "pressure"),
        running=count(answer, "running"),
        waiting=count(answer, "waiting"),
        draining=draining,
        requests_total=count(answer, "requests_total"),
        kv_usage=number(answer, "kv_usage"),
        at=at,
        kv_tokens=count({"kv_tokens": 0, **answer}, "kv_tokens"),
        max_num_seqs=count({"max_num_seqs": 0, **answer}, "max_num_seqs"),
        tokens_per_second=number({"tokens_per_second": 0, **answer}, "tokens_per_second"),
    )
