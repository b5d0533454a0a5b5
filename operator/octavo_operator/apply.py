"""Carries a plan out, one operation after the other; what the API server answers goes straight into the cache.

Never decides. Stops at the first operation that fails: the next reconcile starts from what is then there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from octavo_operator.api.types import KIND, JsonObject
from octavo_operator.desired import names
from octavo_operator.drift import matches
from octavo_operator.errors import ClusterError, NameInTransitError, NameTakenError
from octavo_operator.kube.client import KubeClient
from octavo_operator.kube.kinds import BY_NAME, DEPLOYMENT, EVENT, LISTED, MODEL_DEPLOYMENT, NAMED_BY_HASH, POD, Kind
from octavo_operator.metrics import Metrics
from octavo_operator.object_cache import ObjectCache, ResourceKey
from octavo_operator.observed import Observed, controller_of, generation_of
from octavo_operator.plan import Apply, Delete, MarkPod, Operation, Scale, WriteReplicas

logger = logging.getLogger(__name__)

FIELDS_TAKEN = "Apply failed with "
"""So the API server begins when another manager's fields are in the way; any other 409 passes by itself."""


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
        """Whether anything came closer to the plan by it, so that the next look finds something else."""
        changed = False
        for operation in plan:
            self._require_leadership()
            match operation:
                case WriteReplicas():
                    await self._write_replicas(key, operation, observed)
                case Apply():
                    changed |= await self._apply(operation, observed)
                case Scale():
                    changed |= await self._scale(key, operation)
                case Delete():
                    await self._delete(key, operation, observed)
                case MarkPod():
                    await self._mark(key, operation)
            self._count(operation)
        return changed

    async def write_status(self, key: ResourceKey, patch: JsonObject) -> JsonObject:
        """The ModelDeployment after a merge patch of its status subresource.

        An answer that brings a newer spec is not kept: the event of that spec would then tell nothing new, and nobody
        would look at it before the next list of everything.
        """
        self._require_leadership()
        self._metrics.writes.labels(operation="WriteStatus", kind=KIND).inc()
        written = await self._kube.merge_patch(MODEL_DEPLOYMENT.path(*key, "status"), {"status": patch})
        known = self._cache.resource(key)
        if known is not None and generation_of(known) == generation_of(written):
            self._cache.put(written)
        return written

    async def tell(self, event: JsonObject) -> None:
        """Writes an event; a refusal is told and no more, since the status says the same."""
        try:
            await self._kube.create(EVENT.path(event["metadata"]["namespace"]), event)
        except ClusterError as error:
            logger.warning("event not written", extra={"error": str(error)})

    async def _write_replicas(self, key: ResourceKey, operation: WriteReplicas, observed: Observed) -> None:
        """By the scale subresource, as the autoscaler and the gateway do; the watch brings the new resource.

        Only to the version that it was decided on: a wake of the gateway must not be overwritten unseen.
        """
        version = observed.resource["metadata"]["resourceVersion"]
        body = {"metadata": {"resourceVersion": version}, "spec": {"replicas": operation.replicas}}
        await self._kube.merge_patch(MODEL_DEPLOYMENT.path(*key, "scale"), body)
        said = {"resource": "/".join(key), "replicas": operation.replicas, "why": operation.reason}
        logger.info("replicas written", extra=said)

    async def _apply(self, operation: Apply, observed: Observed) -> bool:
        manifest = operation.manifest
        kind = BY_NAME[manifest["kind"]]
        if operation.is_new:
            self._require_free(manifest, await self._look(kind, manifest), observed)
        is_sure = not operation.is_new or kind not in NAMED_BY_HASH
        try:
            applied = await self._kube.apply(kind, manifest, force=is_sure)
        except ClusterError as error:
            if is_sure or error.status != 409 or not error.message.startswith(FIELDS_TAKEN):
                raise
            applied = await self._take_back(kind, manifest, observed)
        touched = self._cache.put(applied)
        if not matches(manifest, applied):
            # Another look at once would apply the same, and be changed again.
            said = {"kind": kind.name, "object": f"{manifest['metadata']['namespace']}/{manifest['metadata']['name']}"}
            logger.info("an admission policy changes what is applied", extra=said)
            return False
        return bool(touched)

    async def _take_back(self, kind: Kind, manifest: JsonObject, observed: Observed) -> dict[str, Any]:
        """Fields of others in an object that may be ours: where somebody has edited its labels no watch tells of it."""
        metadata = manifest["metadata"]
        found = await self._kube.find(kind, metadata["namespace"], metadata["name"])
        self._require_free(manifest, found, observed)
        return await self._kube.apply(kind, manifest, force=True)

    async def _look(self, kind: Kind, manifest: JsonObject) -> JsonObject | None:
        """What bears that name; the cache holds objects with our labels only, and some names end in a hash."""
        metadata = manifest["metadata"]
        if kind in NAMED_BY_HASH:
            return self._cache.find(kind.name, metadata["namespace"], metadata["name"])
        return await self._kube.find(kind, metadata["namespace"], metadata["name"])

    def _require_free(self, manifest: JsonObject, found: JsonObject | None, observed: Observed) -> None:
        """Raises where the object is another's: for good, or until what was deleted has gone."""
        if found is None or _may_adopt(found, observed.uid):
            return
        what = f"{manifest['kind']} {manifest['metadata']['name']}"
        controller = controller_of(found) or {}
        if (controller.get("kind"), controller.get("name")) == (KIND, observed.resource["metadata"]["name"]):
            raise NameInTransitError(f"{what} still belongs to the deleted {KIND} of the same name and will go with it")
        raise NameTakenError(f"{what} exists and does not belong to this {KIND}; delete it or rename the {KIND}")

    async def _scale(self, key: ResourceKey, operation: Scale) -> bool:
        path = DEPLOYMENT.path(key[0], operation.deployment)
        labels = names.revision_labels(key[1], operation.revision)
        body = {"metadata": {"labels": labels}, "spec": {"replicas": operation.replicas}}
        scaled = self._cache.put(await self._kube.merge_patch(path, body))
        return bool(scaled)

    async def _mark(self, key: ResourceKey, operation: MarkPod) -> None:
        """A refusal is told and no more: that a busier pod goes is better than that none does."""
        annotations = {names.DELETION_COST: str(operation.tokens)}
        try:
            await self._kube.merge_patch(POD.path(key[0], operation.pod), {"metadata": {"annotations": annotations}})
        except ClusterError as error:
            logger.warning(
                "pod cannot be marked", extra={"resource": "/".join(key), "pod": operation.pod, "error": str(error)}
            )

    async def _delete(self, key: ResourceKey, operation: Delete, observed: Observed) -> None:
        kind_name, name = operation.key
        found = observed.objects[operation.key]
        kind = BY_NAME[kind_name]
        await self._kube.delete(kind, key[0], name, uid=found["metadata"]["uid"])
        if kind in LISTED:
            # No watch tells it; where a finalizer holds the object, the next list does.
            self._cache.remove(found)

    def _count(self, operation: Operation) -> None:
        match operation:
            case Apply():
                kind = operation.manifest["kind"]
            case Delete():
                kind = operation.key[0]
            case Scale():
                kind = DEPLOYMENT.name
            case WriteReplicas():
                kind = KIND
            case MarkPod():
                kind = POD.name
        self._metrics.writes.labels(operation=type(operation).__name__, kind=kind).inc()

    def _require_leadership(self) -> None:
        if not self._is_leader():
            raise NotLeaderError


def _may_adopt(found: JsonObject, uid: str) -> bool:
    """Ours already, or left behind by an orphaning deletion: it bears our labels and nobody controls it."""
    controller = controller_of(found)
    if controller is not None:
        return bool(controller["uid"] == uid)
    return bool(found["metadata"].get("labels", {}).get(names.MANAGED_BY_LABEL) == names.MANAGED_BY)
