"""Carries a plan out, one operation after the other; what the API server answers goes straight into the cache.

Never decides. Stops at the first operation that fails: the next reconcile starts from what is then there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from octavo_operator.api.types import JsonObject
from octavo_operator.desired import names
from octavo_operator.errors import ClusterError, NameTakenError
from octavo_operator.kube.client import KubeClient
from octavo_operator.kube.kinds import BY_NAME, DEPLOYMENT, MODEL_DEPLOYMENT
from octavo_operator.metrics import Metrics
from octavo_operator.object_cache import ObjectCache, ResourceKey
from octavo_operator.observed import Observed
from octavo_operator.plan import Apply, Delete, Operation, Scale, WriteReplicas

logger = logging.getLogger(__name__)


class NotLeaderError(Exception):
    """Leadership was lost: nothing may be written any more."""


class Executor:
    """The only one that changes objects in the cluster, and only as leader."""

    def __init__(
        self, *, kube: KubeClient, cache: ObjectCache, metrics: Metrics, is_leader: Callable[[], bool]
    ) -> None:
        self._kube = kube
        self._cache = cache
        self._metrics = metrics
        self._is_leader = is_leader

    async def execute(self, key: ResourceKey, plan: Iterable[Operation], observed: Observed) -> bool:
        """Whether anything changed by it; an apply that finds all as it should be changes nothing."""
        changed = False
        for operation in plan:
            self._require_leadership()
            self._metrics.writes.labels(operation=type(operation).__name__).inc()
            match operation:
                case WriteReplicas():
                    await self._write_replicas(key, operation)
                case Apply():
                    changed |= await self._apply(operation, observed)
                case Scale():
                    changed |= await self._scale(key, operation)
                case Delete():
                    await self._delete(key, operation, observed)
        return changed

    async def write_status(self, key: ResourceKey, patch: JsonObject) -> None:
        """A merge patch of the status subresource."""
        self._require_leadership()
        path = MODEL_DEPLOYMENT.path(*key, "status")
        self._cache.put(await self._kube.merge_patch(path, {"status": patch}))

    async def _write_replicas(self, key: ResourceKey, operation: WriteReplicas) -> None:
        """By the scale subresource, as the autoscaler and the gateway do; the watch brings the new resource."""
        await self._kube.merge_patch(MODEL_DEPLOYMENT.path(*key, "scale"), {"spec": {"replicas": operation.replicas}})
        said = {"resource": "/".join(key), "replicas": operation.replicas, "why": operation.reason}
        logger.info("replicas written", extra=said)

    async def _apply(self, operation: Apply, observed: Observed) -> bool:
        manifest = operation.manifest
        kind, metadata = BY_NAME[manifest["kind"]], manifest["metadata"]
        if operation.is_new and kind is not DEPLOYMENT:
            # The cache holds objects with our labels only; a Deployment's name ends in a hash and needs no look.
            found = await self._kube.find(kind, metadata["namespace"], metadata["name"])
            if found is not None and not _may_adopt(found, observed.uid):
                raise NameTakenError(
                    f"{kind.name} {metadata['name']} exists and does not belong to this ModelDeployment; "
                    "delete it or rename the ModelDeployment"
                )
        try:
            applied = await self._kube.apply(kind, manifest, force=not operation.is_new or kind is not DEPLOYMENT)
        except ClusterError as error:
            if error.status == 409 and operation.is_new:
                raise NameTakenError(f"{kind.name} {metadata['name']} is somebody else's: {error.message}") from error
            raise
        return bool(self._cache.put(applied))

    async def _scale(self, key: ResourceKey, operation: Scale) -> bool:
        path = DEPLOYMENT.path(key[0], operation.deployment)
        scaled = self._cache.put(await self._kube.merge_patch(path, {"spec": {"replicas": operation.replicas}}))
        return bool(scaled)

    async def _delete(self, key: ResourceKey, operation: Delete, observed: Observed) -> None:
        kind_name, name = operation.key
        found = observed.objects[operation.key]
        await self._kube.delete(BY_NAME[kind_name], key[0], name, uid=found["metadata"]["uid"])

    def _require_leadership(self) -> None:
        if not self._is_leader():
            raise NotLeaderError


def _may_adopt(found: JsonObject, uid: str) -> bool:
    """Ours already, or left behind by an orphaning deletion: it bears our labels and nobody controls it."""
    controllers = [owner["uid"] for owner in found["metadata"].get("ownerReferences", []) if owner.get("controller")]
    labels = found["metadata"].get("labels", {})
    return controllers == [uid] or (not controllers and labels.get(names.MANAGED_BY_LABEL) == names.MANAGED_BY)
