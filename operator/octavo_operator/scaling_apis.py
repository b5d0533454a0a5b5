"""What the cluster has for autoscalers, looked at again and again, and the ScaledObjects where there is KEDA.

KEDA comes and goes with its installation, and a watch of a kind that is not there would never begin; so its objects
are listed instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from octavo_operator.desired.scaler import ScalingApis
from octavo_operator.errors import ClusterError
from octavo_operator.kube.client import KubeClient
from octavo_operator.kube.kinds import SCALED_OBJECT
from octavo_operator.object_cache import ObjectCache, ResourceKey

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 30.0
CUSTOM_METRICS = "custom.metrics.k8s.io"
NO_ADDRESS = "backend KEDA needs Prometheus: set the chart's values keda.enabled and prometheus.address, or choose another backend"
NO_KEDA = "backend KEDA needs KEDA, and the cluster has no API keda.sh: install it, or choose another backend"


class ScalingApisReader:
    """Owns the newest look; before the first one nothing may be decided by it."""

    def __init__(
        self,
        *,
        kube: KubeClient,
        cache: ObjectCache,
        namespaces: Iterable[str],
        prometheus: str,
        has_adapter: bool,
        enqueue: Callable[[ResourceKey], None],
        enqueue_all: Callable[[], None],
    ) -> None:
        """`prometheus` is the base URL for KEDA, "" where KEDA shall not be used; our own adapter counts as metrics."""
        self._kube = kube
        self._cache = cache
        self._namespaces = tuple(namespaces) or ("",)
        self._prometheus = prometheus
        self._has_adapter = has_adapter
        self._enqueue = enqueue
        self._enqueue_all = enqueue_all
        self.apis = ScalingApis(has_custom_metrics=has_adapter, prometheus=prometheus, keda_trouble=NO_ADDRESS)

    async def run(self) -> None:
        """Looks until cancelled; a look that fails changes nothing."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look()
            except ClusterError as error:
                logger.warning("the cluster's APIs cannot be read", extra={"error": str(error)})

    async def look(self) -> None:
        """Once; all resources are looked at anew where something else is there than before."""
        groups = {group["name"] for group in (await self._kube.get_path("/apis") or {}).get("groups", ())}
        trouble = await self._keda_trouble(SCALED_OBJECT.group in groups)
        found = ScalingApis(
            has_custom_metrics=self._has_adapter or CUSTOM_METRICS in groups,
            prometheus=self._prometheus,
            keda_trouble=trouble,
        )
        if found != self.apis:
            logger.info(
                "autoscalers can be", extra={"custom_metrics": found.has_custom_metrics, "keda": trouble or "yes"}
            )
            self.apis = found
            self._enqueue_all()

    async def _keda_trouble(self, is_served: bool) -> str:
        if not self._prometheus:
            return NO_ADDRESS
        if not is_served:
            self._forget()
            return NO_KEDA
        try:
            for namespace in self._namespaces:
                listed = await self._kube.list_kind(SCALED_OBJECT, namespace, SCALED_OBJECT.selector)
                self._take(namespace, listed.items, listed.version)
        except ClusterError as error:
            if error.status == 404:
                return NO_KEDA
            if error.status == 403:
                return f"backend KEDA needs the right to ScaledObjects, set the chart's value keda.enabled: {error}"
            raise
        return ""

    def _forget(self) -> None:
        """With their API the objects are gone too."""
        for namespace in self._namespaces:
            self._take(namespace, [], 2**63)

    def _take(self, namespace: str, objects: list[dict[str, object]], version: int) -> None:
        for key in self._cache.replace_kind(SCALED_OBJECT.name, namespace, objects, version=version):
            self._enqueue(key)
