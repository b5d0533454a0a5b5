"""The running operator: joins watches, cache, queue, workers, leadership, autoscaling and the adapter in one process.

Order of a start: the first lists fill the cache → kopf's watches begin → the leader's workers start on every key.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import logging
import random
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import aiohttp
import kopf

from octavo_operator.apply import Executor, NotLeaderError
from octavo_operator.autoscaling.built_in import BuiltInScaler
from octavo_operator.autoscaling.scraper import Scraper
from octavo_operator.config import OperatorConfig
from octavo_operator.errors import ClusterError
from octavo_operator.handlers import Backoffs, build_registry, build_settings
from octavo_operator.key_secrets import KeySecrets
from octavo_operator.kube.adapter_access import KubeAdapterAccess
from octavo_operator.kube.client import KubeClient
from octavo_operator.kube.kinds import MODEL_DEPLOYMENT, WATCHED, Kind
from octavo_operator.leader import LeaderElection
from octavo_operator.loads import Loads
from octavo_operator.metrics import Metrics
from octavo_operator.metrics_adapter.lifecycle import MetricsAdapter
from octavo_operator.metrics_adapter.store import MetricsStore
from octavo_operator.object_cache import ObjectCache, ResourceKey
from octavo_operator.observe import Observer
from octavo_operator.probe import StartupProbe
from octavo_operator.reconcile import Reconciler
from octavo_operator.rollout.gate_runner import GateRunner
from octavo_operator.scaling_apis import ScalingApisReader
from octavo_operator.web import make_app, serving
from octavo_operator.work_queue import WorkQueue

logger = logging.getLogger(__name__)

STUCK_AFTER_S = 300.0
CRD_RETRY_S = 1.0
SECOND_SYNC_S = 15.0
RELIST_S = 2.0
"""Watches that begin anew mostly do so together; one round of lists then serves them all."""


class Controller:
    """Owns every task of the operator."""

    def __init__(self, config: OperatorConfig, kube: KubeClient, session: aiohttp.ClientSession) -> None:
        self._config = config
        self._kube = kube
        self._cache = ObjectCache()
        self._metrics = Metrics()
        kube.on_answer = self._metrics.count_request
        self._queue: WorkQueue[ResourceKey] = WorkQueue(jitter=random.random)
        self._store = MetricsStore()
        self._loads = Loads(cache=self._cache, store=self._store, enqueue=self._queue.add, now=time.time)
        self._leader = LeaderElection(
            kube,
            namespace=config.own_namespace,
            name=config.lease_name,
            identity=config.identity,
            on_change=self._on_leadership,
            clock=time.monotonic,
        )
        self._scaling_apis = ScalingApisReader(
            kube=kube,
            cache=self._cache,
            namespaces=config.namespaces,
            prometheus=config.prometheus,
            has_adapter=config.adapter is not None,
            enqueue=self._queue.add,
            enqueue_all=self._enqueue_all,
        )
        executor = Executor(
            kube=kube, cache=self._cache, metrics=self._metrics, is_leader=lambda: self._leader.is_leader
        )
        self._adapter = self._make_adapter()
        self._told_trouble = ""
        self._gates = GateRunner(self._queue.add)
        observer = Observer(
            kube=kube,
            cache=self._cache,
            probe=StartupProbe(session),
            loads=self._loads,
            keys=KeySecrets(kube, readers=config.key_readers, clock=time.monotonic),
            scaling_apis=lambda: replace(self._scaling_apis.apis, adapter_trouble=self._adapter_trouble()),
            clock=time.monotonic,
        )
        self._reconciler = Reconciler(
            observer=observer,
            executor=executor,
            metrics=self._metrics,
            gates=self._gates,
            built_in=BuiltInScaler(),
            config=config,
            now=lambda: datetime.datetime.now(datetime.UTC),
        )
        self._is_synced = False
        self._relisted = asyncio.Event()
        """A watch had to begin with a list."""
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: BaseException | None = None

    async def run(self) -> None:
        """Until SIGTERM or SIGINT, or until a part dies, which then is raised."""
        app = make_app(self._metrics, trouble=self._trouble, is_ready=lambda: self._is_synced)
        async with serving(app, host=self._config.host, port=self._config.port) as port:
            logger.info("operator started", extra={"port": port, "identity": self._config.identity})
            await self._await_crd()
            self._tasks = [self._spawn(name, coroutine) for name, coroutine in self._parts().items()]
            try:
                await self._watch()
            finally:
                await self._stop_parts()
        if self._failure is not None:
            raise self._failure

    def _parts(self) -> dict[str, Coroutine[Any, Any, None]]:
        scraper = Scraper(self._store, self._loads.list_pods)
        parts = {
            "resync": self._resync(),
            "leader": self._leader.run(),
            "gates": self._gates.run(),
            "scaling-apis": self._scaling_apis.run(),
            "scraper": scraper.run(self._on_round),
            "gateways": self._loads.watch_gateways(self._kube, self._config.gateway_namespace),
        }
        if self._adapter is not None:
            parts["adapter"] = self._adapter.run()
        return parts | {f"worker-{number}": self._work() for number in range(self._config.num_workers)}

    async def _watch(self) -> None:
        namespaces = self._config.namespaces
        # kopf would ask for the user's name, and the image's user has no line in /etc/passwd. Its type is not exported.
        identity: Any = self._config.identity
        await kopf.operator(
            registry=build_registry(self._on_event, self._kube.credentials, self._stop_parts),
            settings=build_settings(),
            clusterwide=not namespaces,
            namespaces=namespaces,
            stop_flag=self._stop,
            identity=identity,
        )

    async def _stop_parts(self) -> None:
        """Before kopf winds up, so that the lease is free for another at once."""
        self._stop.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_event(self, kind: Kind, event_type: str | None, obj: dict[str, Any]) -> None:
        if event_type is None:
            self._relisted.set()
        obj = {**obj, "kind": kind.name, "apiVersion": kind.api_version}
        touched = self._cache.remove(obj) if event_type == "DELETED" else self._cache.put(obj)
        for key in touched:
            self._queue.add(key)

    async def _resync(self) -> None:
        """Lists everything, again and again: heals what a watch never told, and looks at every resource anew.

        The second time soon after the first, because a watch may have begun after its first list.
        """
        pauses = itertools.chain((min(SECOND_SYNC_S, self._config.resync_s),), itertools.repeat(self._config.resync_s))
        for pause_s in pauses:
            await self._sync()
            self._is_synced = True
            self._enqueue_all()
            await self._heal(pause_s)

    async def _heal(self, pause_s: float) -> None:
        """For so long, lists everything also whenever a watch began anew: what was deleted meanwhile it never tells."""
        until = asyncio.get_running_loop().time() + pause_s
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout_at(until):
                    await self._relisted.wait()
                await asyncio.sleep(RELIST_S)
                self._relisted.clear()
                await self._sync()

    async def _sync(self) -> None:
        """One list of every kind into the cache, tried until the API server gives it."""
        for again_in_s in Backoffs():
            try:
                await self._list_all()
            except ClusterError as error:
                logger.warning("lists cannot be read", extra={"error": str(error), "again_in_s": again_in_s})
                await asyncio.sleep(again_in_s)
            else:
                return

    async def _list_all(self) -> None:
        await self._scaling_apis.look()
        for kind in WATCHED:
            for namespace in self._config.namespaces or ("",):
                listed = await self._kube.list_kind(kind, namespace, kind.selector)
                missed = self._cache.replace_kind(kind.name, namespace, listed.items, version=listed.version)
                if missed and self._is_synced:
                    logger.info("a list told what no watch did", extra={"kind": kind.name, "count": len(missed)})
                for key in missed:
                    self._queue.add(key)

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            try:
                if self._leader.is_leader and self._is_synced:
                    await self._reconcile(key)
            finally:
                self._queue.done(key)
                self._metrics.queue_depth.set(len(self._queue))

    async def _reconcile(self, key: ResourceKey) -> None:
        try:
            with self._metrics.reconcile_seconds.time():
                outcome = await self._reconciler.reconcile(key)
        except NotLeaderError:
            return
        except ClusterError as error:
            self._fail(key, "ClusterError", str(error), at_least_s=error.retry_after_s)
            return
        except Exception:  # one broken resource must not stop the others
            logger.exception("reconcile failed", extra={"resource": "/".join(key)})
            self._fail(key, "Bug", "see the traceback above")
            return
        if outcome.failure is not None and outcome.is_retryable:
            self._fail(key, outcome.failure.reason, outcome.failure.sentence)
            return
        self._queue.forgive(key)
        if outcome.look_again_s is not None:
            self._queue.add_after(key, outcome.look_again_s)

    def _fail(self, key: ResourceKey, reason: str, sentence: str, *, at_least_s: float = 0.0) -> None:
        self._metrics.errors.labels(reason=reason).inc()
        delay_s = self._queue.retry(key, at_least_s=at_least_s)
        said = {"resource": "/".join(key), "reason": reason, "error": sentence, "again_in_s": round(delay_s, 2)}
        logger.warning("reconcile is tried again", extra=said)

    def _on_leadership(self, is_leader: bool) -> None:
        self._metrics.is_leader.set(is_leader)
        if is_leader:
            self._enqueue_all()

    def _enqueue_all(self) -> None:
        keys = [(str(raw["metadata"]["namespace"]), str(raw["metadata"]["name"])) for raw in self._cache.resources()]
        self._metrics.model_deployments.set(len(keys))
        for key in keys:
            self._queue.add(key)

    async def _await_crd(self) -> None:
        """Kopf looks once only for the resources to watch; an operator that comes before its CRD waits for it."""
        said = ""
        while True:
            try:
                if await self._is_crd_served():
                    return
                trouble = "the CRD modeldeployments.octavo.dev is not installed"
            except ClusterError as error:
                trouble = str(error)
            if trouble != said:
                logger.warning("waiting for the API", extra={"why": trouble})
                said = trouble
            await asyncio.sleep(CRD_RETRY_S)

    async def _is_crd_served(self) -> bool:
        """The list of groups comes from another part of the API server and lags behind the group itself."""
        groups = (await self._kube.get_path("/apis") or {}).get("groups", ())
        if MODEL_DEPLOYMENT.group not in [group["name"] for group in groups]:
            return False
        found = await self._kube.get_path(f"/apis/{MODEL_DEPLOYMENT.api_version}") or {}
        return MODEL_DEPLOYMENT.plural in [resource["name"] for resource in found.get("resources", ())]

    def _make_adapter(self) -> MetricsAdapter | None:
        if self._config.adapter is None:
            return None
        access = KubeAdapterAccess(self._kube)
        return MetricsAdapter(self._config.adapter, kube=access, store=self._store, list_pods=self._loads.list_pods)

    def _adapter_trouble(self) -> str:
        return "it is off" if self._adapter is None else self._adapter.trouble

    def _on_round(self) -> None:
        """After each scrape; what became of the adapter is in the status of all, so all are looked at when it changes."""
        self._loads.on_round()
        trouble = self._adapter_trouble()
        self._metrics.adapter_up.set(not trouble)
        if trouble != self._told_trouble:
            self._told_trouble = trouble
            self._enqueue_all()

    def _trouble(self) -> str:
        if self._queue.still_s > STUCK_AFTER_S:
            return f"{len(self._queue)} keys wait and none was worked on for {self._queue.still_s:.0f} s"
        return ""

    def _spawn(self, name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=name)
        task.add_done_callback(self._on_part_end)
        return task

    def _on_part_end(self, task: asyncio.Task[None]) -> None:
        """No part ends by itself: if one does, the process ends, and Kubernetes starts it anew."""
        if task.cancelled() or self._stop.is_set():
            return
        self._failure = task.exception() or RuntimeError(f"{task.get_name()} ended")
        logger.error("a part of the operator died", extra={"part": task.get_name(), "error": str(self._failure)})
        self._stop.set()
