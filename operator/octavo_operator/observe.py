"""Builds the one snapshot that a reconcile works on: the cache, the loading pods, the nodes where they explain something."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Protocol

from octavo_operator.api.types import JsonObject
from octavo_operator.desired import names
from octavo_operator.desired.render import ObjectKey, key_of
from octavo_operator.desired.scaler import ScalingApis
from octavo_operator.errors import ClusterError
from octavo_operator.key_secrets import KeySecrets
from octavo_operator.kube.client import KubeClient
from octavo_operator.kube.kinds import DEPLOYMENT, EVENT
from octavo_operator.object_cache import ObjectCache, ResourceKey
from octavo_operator.observed import Capacity, Node, Observed, Pod, ZeroWish, belongs_to, controller_of
from octavo_operator.probe import StartupProbe
from octavo_operator.served_names import claimed_names, find_rivals
from octavo_operator.start_report import pod_to_report

logger = logging.getLogger(__name__)

NODES_FRESH_S = 20.0
NODE_COMES = ("TriggeredScaleUp", "Nominated")
"""Reasons of the events in which the cluster autoscaler and Karpenter say that they bring a node for a pod."""


class LoadReader(Protocol):
    """What the autoscaler knows of a ModelDeployment."""

    def pressure(self, key: ResourceKey) -> float | None:
        """Mean over the ready pods with a fresh load."""

    def pressures(self, key: ResourceKey) -> dict[str, float]:
        """Of each of them, by pod name."""

    def capacity(self, key: ResourceKey) -> Capacity | None:
        """Of a replica, from the same loads."""

    def in_flight(self, key: ResourceKey) -> dict[str, int]:
        """Tokens in the KV caches of its serving pods, by pod name."""

    def zero_wish(self, key: ResourceKey) -> ZeroWish | None:
        """Whether it may go to zero now."""

    def idle_for_s(self, key: ResourceKey) -> float | None:
        """Seconds without any request; None where nobody can say."""


class Observer:
    """Owns the memory of the nodes; all else it only reads."""

    def __init__(
        self,
        *,
        kube: KubeClient,
        cache: ObjectCache,
        probe: StartupProbe,
        loads: LoadReader,
        keys: KeySecrets,
        scaling_apis: Callable[[], ScalingApis],
        clock: Callable[[], float],
    ) -> None:
        """`clock` is monotonic, in seconds."""
        self._kube = kube
        self._cache = cache
        self._probe = probe
        self._loads = loads
        self._keys = keys
        self._scaling_apis = scaling_apis
        self._clock = clock
        self._nodes: tuple[Node, ...] | None = None
        self._nodes_at = float("-inf")

    async def snapshot(self, key: ResourceKey) -> Observed | None:
        """None where there is no such ModelDeployment."""
        resource = self._cache.resource(key)
        if resource is None:
            return None
        owned = self._cache.owned(key)
        # One that nobody controls is no replica: it would never go, and rollouts would wait for it for ever.
        all_pods = tuple(pod for obj in owned if obj["kind"] == "Pod" for pod in [Pod(raw=obj)] if pod.is_controlled)
        pods = tuple(pod for pod in all_pods if not pod.is_download)
        objects = {key_of(obj): obj for obj in owned if obj["kind"] != "Pod" and belongs_to(obj, resource)}
        return Observed(
            resource=resource,
            objects=objects | await self._find_hidden(key, objects, pods, uid=resource["metadata"]["uid"]),
            pods=pods,
            downloads=tuple(pod for pod in all_pods if pod.is_download),
            startups=await self._probe.read(all_pods, also=pod_to_report(pods, resource.get("status") or {})),
            pressure=self._loads.pressure(key),
            pressures=self._loads.pressures(key),
            capacity=self._loads.capacity(key),
            in_flight=self._loads.in_flight(key),
            nodes=await self._list_nodes() if any(pod.waits_for_node for pod in all_pods) else None,
            rivals=find_rivals(resource, self._cache.claimants(claimed_names(resource))),
            zero_wish=self._loads.zero_wish(key),
            keys_trouble=await self._keys.trouble(resource),
            idle_for_s=self._loads.idle_for_s(key),
            awaits_node=await self._awaits_node(pods),
            scaling_apis=self._scaling_apis(),
        )

    async def _find_hidden(
        self, key: ResourceKey, known: Collection[ObjectKey], pods: tuple[Pod, ...], *, uid: str
    ) -> dict[ObjectKey, JsonObject]:
        """Our Deployments that living pods tell of and no watch does, because somebody has changed their labels."""
        living = {pod.revision for pod in pods if not pod.is_terminating and not pod.is_finished} - {""}
        hidden: dict[ObjectKey, JsonObject] = {}
        for revision in sorted(living):
            name = names.deployment_name(key[1], revision)
            found = None if (DEPLOYMENT.name, name) in known else await self._kube.find(DEPLOYMENT, key[0], name)
            if found is None or (controller_of(found) or {}).get("uid") != uid:
                continue
            metadata = found["metadata"]
            labels = {**metadata.get("labels", {}), names.REVISION_LABEL: revision}
            hidden[DEPLOYMENT.name, name] = {
                **found,
                "kind": DEPLOYMENT.name,
                "metadata": {**metadata, "labels": labels},
            }
        return hidden

    async def _awaits_node(self, pods: tuple[Pod, ...]) -> bool:
        """Whether an autoscaler of nodes works for a new revision's pod; asked only while there is an older one."""
        waiting = [pod for pod in pods if pod.waits_for_node and not pod.is_terminating]
        if len({pod.revision for pod in pods}) < 2:
            return False
        for pod in waiting[:1]:
            query = {"fieldSelector": f"involvedObject.uid={pod.uid}", "limit": "50"}
            try:
                answer = await self._kube.request("GET", EVENT.path(pod.namespace), query=query)
            except ClusterError as error:
                logger.debug("events cannot be listed", extra={"error": str(error)})
                continue
            return any(event.get("reason") in NODE_COMES for event in answer.get("items") or ())
        return False

    async def _list_nodes(self) -> tuple[Node, ...] | None:
        """None where the operator may not list nodes; asked at most every `NODES_FRESH_S`."""
        if self._clock() - self._nodes_at > NODES_FRESH_S:
            self._nodes_at = self._clock()
            try:
                listing = await self._kube.list_path("/api/v1/nodes")
                self._nodes = tuple(map(_parse_node, listing.items))
            except ClusterError as error:
                logger.debug("nodes cannot be listed", extra={"error": str(error)})
                self._nodes = None
        return self._nodes


def _parse_node(node: JsonObject) -> Node:
    spec = node.get("spec", {})
    taints = spec.get("taints") or []
    return Node(
        name=str(node["metadata"]["name"]),
        is_cordoned=bool(spec.get("unschedulable")),
        has_taints=any(taint.get("effect") != "PreferNoSchedule" for taint in taints),
        capacity=node.get("status", {}).get("allocatable") or {},
        labels=node["metadata"].get("labels") or {},
    )
