"""What the autoscaler knows, in the words of the operator: pods to scrape, mean pressure, the wish for zero replicas.

Joins the cache of objects with the MetricsStore, the ActivityTracker and what the gateways hold; decides nothing
itself, that is `autoscaling.policy`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import aiohttp

from octavo_operator.api.types import JsonObject, ModelDeployment
from octavo_operator.api.validation import parse_model_deployment
from octavo_operator.autoscaling.gateway_held import GatewayHeld, GatewayPod
from octavo_operator.autoscaling.policy import decide_zero
from octavo_operator.autoscaling.schedule import apply_schedules
from octavo_operator.autoscaling.window import ActivityTracker
from octavo_operator.errors import ClusterError, SpecInvalidError
from octavo_operator.kube.client import KubeClient
from octavo_operator.kube.kinds import POD
from octavo_operator.metrics_adapter.store import MetricsStore, ServerPod, mean_pressure
from octavo_operator.object_cache import ObjectCache, ResourceKey
from octavo_operator.observed import Capacity, Pod, ZeroWish
from octavo_operator.status import capacity_json, pressure_text

logger = logging.getLogger(__name__)

GATEWAY_SELECTOR = "app.kubernetes.io/name=octavo,app.kubernetes.io/component=gateway"
GATEWAYS_EVERY_S = 2.0


class Loads:
    """Owns the tracker and the list of gateway pods; `on_round` runs after each scrape."""

    def __init__(
        self,
        *,
        cache: ObjectCache,
        store: MetricsStore,
        enqueue: Callable[[ResourceKey], None],
        now: Callable[[], float],
    ) -> None:
        """`now` gives Unix seconds, the same clock as the scraper's."""
        self._cache = cache
        self._store = store
        self._enqueue = enqueue
        self._now = now
        self._tracker = ActivityTracker()
        self._gateways: tuple[GatewayPod, ...] | None = None
        self._held = GatewayHeld(lambda: self._gateways or (), now=now)

    def list_pods(self) -> list[ServerPod]:
        """All server pods as the scraper and the adapter want them."""
        return [_server_pod(Pod(raw=raw)) for raw in self._cache.pods()]

    def pressure(self, key: ResourceKey) -> float | None:
        return mean_pressure(self._pods(key), self._store, self._now())

    def pressures(self, key: ResourceKey) -> dict[str, float]:
        """Of each serving pod that has told it lately, by name."""
        now = self._now()
        loads = {pod.name: self._store.fresh(pod.uid, now) for pod in self._pods(key) if pod.is_serving}
        return {name: load.pressure for name, load in loads.items() if load is not None}

    def capacity(self, key: ResourceKey) -> Capacity | None:
        """Of a replica: the least room and the best speed that a serving pod tells; None where none tells any."""
        now = self._now()
        loads = [self._store.fresh(pod.uid, now) for pod in self._pods(key) if pod.is_serving]
        told = [load for load in loads if load is not None and load.kv_tokens]
        if not told:
            return None
        speeds = (load.tokens_per_second for load in told if math.isfinite(load.tokens_per_second))
        return Capacity(
            kv_tokens=min(load.kv_tokens for load in told),
            max_num_seqs=min(load.max_num_seqs for load in told),
            tokens_per_second=max((0.0, *speeds)),
        )

    def in_flight(self, key: ResourceKey) -> dict[str, int]:
        """Tokens in the KV caches of its serving pods, by pod name; without those that have not told lately."""
        now = self._now()
        loads = {pod.name: self._store.fresh(pod.uid, now) for pod in self._pods(key) if pod.is_serving}
        return {
            name: round(load.kv_usage * load.kv_tokens)
            for name, load in loads.items()
            if load is not None and math.isfinite(load.kv_usage)
        }

    def zero_wish(self, key: ResourceKey) -> ZeroWish | None:
        raw, snapshot = self._cache.resource(key), self._held.snapshot
        activity = self._tracker.activity("/".join(key))
        if raw is None or activity is None or not _may_sleep(raw):
            return None
        if self._gateways is None or snapshot is None:
            # What gateways hold is unknown: a request may be waiting.
            return None
        resource = self._scheduled(raw)
        if resource is None or resource.spec.scaling is None:
            return None
        decision = decide_zero(
            min_replicas=resource.spec.scaling.min_replicas,
            replicas=resource.wanted_replicas,
            idle_after_s=resource.spec.scaling.idle_after_s,
            idleness=activity.idleness(now=self._now(), silent_gateways=snapshot.unheard),
        )
        return ZeroWish(reason=decision.reason) if decision.to_zero else None

    def idle_for_s(self, key: ResourceKey) -> float | None:
        """Of a resource that is watched for it; None while some ready pod does not tell its load."""
        activity = self._tracker.activity("/".join(key))
        if activity is None or activity.silent_pods:
            return None
        return activity.idleness(now=self._now()).idle_for_s

    def on_round(self) -> None:
        """Take in a fresh round of loads, and enqueue every resource whose status or count should change."""
        keys = []
        for raw in self._cache.resources():
            key = (str(raw["metadata"]["namespace"]), str(raw["metadata"]["name"]))
            if _may_sleep(raw) or _rolls_when_idle(raw):
                keys.append("/".join(key))
                self._observe(key, raw)
            if self._pressure_changed(key, raw) or self._capacity_changed(key, raw) or self.zero_wish(key) is not None:
                self._enqueue(key)
        self._tracker.retain(keys)

    def _scheduled(self, raw: JsonObject) -> ModelDeployment | None:
        """With the bounds that are in force now; None for a spec that cannot be."""
        try:
            return apply_schedules(parse_model_deployment(raw), now=datetime.fromtimestamp(self._now(), UTC)).resource
        except SpecInvalidError:
            return None

    async def watch_gateways(self, kube: KubeClient, namespace: str) -> None:
        """Ask the gateways what they hold, as long as there is a resource that may go to zero; until cancelled."""
        async with self._held.session() as session:
            while True:
                if any(map(_may_sleep, self._cache.resources())):
                    await self.ask_gateways(kube, namespace, session)
                await asyncio.sleep(GATEWAYS_EVERY_S)

    async def ask_gateways(self, kube: KubeClient, namespace: str, session: aiohttp.ClientSession) -> None:
        """One round: who they are, and what they hold."""
        await self._list_gateways(kube, namespace)
        await self._held.read_once(session)

    async def _list_gateways(self, kube: KubeClient, namespace: str) -> None:
        try:
            listing = await kube.list_kind(POD, namespace, GATEWAY_SELECTOR)
        except ClusterError as error:
            logger.warning("gateways cannot be listed, so nothing goes to zero", extra={"error": str(error)})
            self._gateways = None
            return
        pods = (Pod(raw=raw) for raw in listing.items)
        self._gateways = tuple(GatewayPod(name=pod.name, ip=pod.ip) for pod in pods if pod.is_ready and pod.ip)

    def _observe(self, key: ResourceKey, raw: JsonObject) -> None:
        resource = _parse(raw)
        if resource is None:
            return
        snapshot, name = self._held.snapshot, "/".join(key)
        now = self._now()
        self._tracker.observe(
            name,
            replicas=resource.wanted_replicas,
            loads={pod.uid: self._store.fresh(pod.uid, now) for pod in self._pods(key) if pod.is_serving},
            held=snapshot.held.get(name, 0) if snapshot else 0,
            last_wake=snapshot.last_wake.get(name) if snapshot else None,
            now=now,
        )

    def _pressure_changed(self, key: ResourceKey, raw: JsonObject) -> bool:
        pressure = self.pressure(key)
        told = (raw.get("status") or {}).get("scaling", {}).get("pressure")
        return bool(told != (None if pressure is None else pressure_text(pressure)))

    def _capacity_changed(self, key: ResourceKey, raw: JsonObject) -> bool:
        capacity = self.capacity(key)
        return capacity is not None and capacity_json(capacity) != (raw.get("status") or {}).get("capacity")

    def _pods(self, key: ResourceKey) -> Iterable[ServerPod]:
        return (_server_pod(Pod(raw=obj)) for obj in self._cache.owned(key) if obj["kind"] == "Pod")


def _may_sleep(raw: JsonObject) -> bool:
    """The cheap look at a raw spec: all resources are asked every other second, and few ever sleep, be it by schedule."""
    scaling = raw["spec"].get("scaling")
    if not isinstance(scaling, dict):
        return False
    bounds = (scaling, *(each for each in scaling.get("schedules") or () if isinstance(each, dict)))
    return any(each.get("minReplicas") == 0 for each in bounds)


def _rolls_when_idle(raw: JsonObject) -> bool:
    """As cheap a look: whether a rollout may wait for idleness."""
    rollout = raw["spec"].get("rollout")
    when = rollout.get("when") if isinstance(rollout, dict) else None
    return isinstance(when, dict) and when.get("policy") == "Idle"


def _parse(raw: object) -> ModelDeployment | None:
    try:
        return parse_model_deployment(raw)
    except SpecInvalidError:
        return None


def _server_pod(pod: Pod) -> ServerPod:
    metadata = pod.raw["metadata"]
    return ServerPod(
        namespace=str(metadata["namespace"]),
        name=pod.name,
        uid=pod.uid,
        ip=pod.ip,
        labels=metadata.get("labels", {}),
        ready=pod.is_ready,
        terminating=pod.is_terminating,
    )
