"""What to do so that the observed becomes the desired: an ordered list of operations, decided from values alone.

Never decides by what was done last time; an operation that is already fulfilled is not in the plan. How many replicas
each revision has is decided in `rollout.policy`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from octavo_operator.api.quantity import parse_quantity
from octavo_operator.api.types import JsonObject, ModelDeployment
from octavo_operator.desired import names
from octavo_operator.desired.cache import claims_in
from octavo_operator.desired.render import Desired, ObjectKey, key_of
from octavo_operator.drift import matches
from octavo_operator.observed import Observed, replicas_of

SCALERS = ("HorizontalPodAutoscaler", "ScaledObject")
_MOST_TOKENS = 2**31 - 1
"""Kubernetes reads the cost of a pod as an int32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteReplicas:
    """Write `spec.replicas` of the ModelDeployment itself."""

    replicas: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """Server-side apply; `is_new` where the operator has not seen the object, so that it may be somebody else's."""

    manifest: JsonObject
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Set the count of a Deployment whose template we can no longer render, and its labels, by which a watch tells of it."""

    deployment: str
    replicas: int
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    key: ObjectKey


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkPod:
    """Say what it would cost to lose a pod, just before its Deployment gives one up: the cheapest goes."""

    pod: str
    tokens: int
    """In flight."""


Operation = WriteReplicas | Apply | Scale | Delete | MarkPod


def make_plan(resource: ModelDeployment, desired: Desired, observed: Observed) -> tuple[Operation, ...]:
    """Nothing while the resource is suspended; a new count first, and the rest of the plan then waits for its event."""
    if resource.spec.suspend:
        return ()
    replicas = _replicas_to_write(resource, observed)
    if replicas is not None:
        return (replicas,)
    applies, retirements = tuple(_applies(desired, observed)), tuple(_retirements(desired, observed))
    marks, deletions = _marks((*applies, *retirements), observed), tuple(_deletions(desired, observed))
    # Before another scaler comes, so that never two of them write one number.
    scalers = tuple(deletion for deletion in deletions if deletion.key[0] in SCALERS)
    others = (deletion for deletion in deletions if deletion not in scalers)
    # What serves gets more though the API server may refuse the new template, where the plan then ends.
    growing = tuple(apply for apply in applies if _grows(apply, observed))
    rest = (apply for apply in applies if apply not in growing)
    return (*scalers, *marks, *growing, *rest, *retirements, *others)


def _replicas_to_write(resource: ModelDeployment, observed: Observed) -> WriteReplicas | None:
    """`spec.replicas` belongs to the scalers; the operator writes the first number, and zero, and leaves zero."""
    scaling = resource.spec.scaling
    if scaling is None:
        return None
    if resource.spec.replicas is None:
        return WriteReplicas(replicas=resource.wanted_replicas, reason="first number of replicas")
    if resource.spec.replicas == 0 and scaling.min_replicas > 0:
        return WriteReplicas(replicas=scaling.min_replicas, reason=f"minReplicas is {scaling.min_replicas}")
    if observed.zero_wish is not None and resource.spec.replicas > 0 and resource.may_sleep:
        return WriteReplicas(replicas=0, reason=observed.zero_wish.reason)
    if observed.replicas_wish is not None:
        return WriteReplicas(replicas=observed.replicas_wish.replicas, reason=observed.replicas_wish.reason)
    return None


def _applies(desired: Desired, observed: Observed) -> Iterator[Apply]:
    for manifest in desired.objects:
        found = observed.objects.get(key_of(manifest))
        if found is not None and manifest["kind"] == "PersistentVolumeClaim":
            manifest = _as_grown(manifest, found)
        if found is None and _waits_for_model(manifest, desired, observed):
            continue
        if found is not None and manifest["kind"] == "Job":
            # Its template cannot be changed, and need not: what it fetches is in its name.
            continue
        if found is None or not matches(manifest, found):
            yield Apply(manifest=manifest, is_new=found is None)


def _grows(operation: Apply, observed: Observed) -> bool:
    found = observed.objects.get(key_of(operation.manifest))
    is_known = operation.manifest["kind"] == "Deployment" and found is not None
    return is_known and replicas_of(operation.manifest) > replicas_of(found or {})


def _as_grown(manifest: JsonObject, found: JsonObject) -> JsonObject:
    """A claim that people or tools let grow since it was applied stays as large, because none can shrink."""
    applied, has = (
        claim["metadata"].get("annotations", {}).get(names.APPLIED_ANNOTATION) for claim in (manifest, found)
    )
    wanted, size = (claim["spec"]["resources"]["requests"]["storage"] for claim in (manifest, found))
    if applied != has or (parse_quantity(str(size)) or 0) <= (parse_quantity(str(wanted)) or 0):
        return manifest
    return {**manifest, "spec": {**manifest["spec"], "resources": {"requests": {"storage": size}}}}


def _waits_for_model(manifest: JsonObject, desired: Desired, observed: Observed) -> bool:
    """Whether its pods would hold GPUs while the model is still being fetched onto their claim."""
    if manifest["kind"] != "Deployment" or observed.is_fetched(desired.job):
        return False
    return bool(claims_in(manifest) & desired.claims_to_fill)


def _retirements(desired: Desired, observed: Observed) -> Iterator[Scale]:
    """Deployments whose template is not kept any more."""
    for revision, deployment in observed.deployments.items():
        if key_of(deployment) in desired.keys:
            continue
        replicas = desired.counts.get(revision, 0)
        if replicas_of(deployment) != replicas:
            yield Scale(deployment=deployment["metadata"]["name"], replicas=replicas, revision=revision)


def _marks(operations: Iterable[Operation], observed: Observed) -> Iterator[MarkPod]:
    """Of the pods of each Deployment that is about to give up some and keep some. One that tells no load costs nothing."""
    left = dict(_new_counts(operations))
    for revision, deployment in observed.deployments.items():
        if not 0 < left.get(deployment["metadata"]["name"], 0) < replicas_of(deployment):
            continue
        for pod in observed.ready_pods(revision):
            tokens = min(observed.in_flight.get(pod.name, 0), _MOST_TOKENS)
            if pod.deletion_cost != tokens:
                yield MarkPod(pod=pod.name, tokens=tokens)


def _new_counts(operations: Iterable[Operation]) -> Iterator[tuple[str, int]]:
    """Names of Deployments whose count is written, and the count."""
    for operation in operations:
        match operation:
            case Apply(manifest={"kind": "Deployment"} as manifest):
                yield manifest["metadata"]["name"], replicas_of(manifest)
            case Scale():
                yield operation.deployment, operation.replicas


def _deletions(desired: Desired, observed: Observed) -> Iterator[Delete]:
    for key, found in observed.objects.items():
        if "deletionTimestamp" in found["metadata"] or key in desired.kept:
            continue
        if key in desired.keys:
            if key[0] == "Job" and observed.is_outlived(key):
                yield Delete(key=key)
            continue
        if key[0] == "PersistentVolumeClaim" and key[1] in observed.claims_in_use:
            # Pods of that revision may still have to be made anew.
            continue
        revision = found["metadata"].get("labels", {}).get(names.REVISION_LABEL)
        if key[0] == "Deployment" and (replicas_of(found) or observed.has_pods(str(revision))):
            continue
        yield Delete(key=key)


def is_whole(desired: Desired, observed: Observed) -> bool:
    """Whether the wanted revision alone can carry what is asked for."""
    return len(observed.ready_pods(desired.revision)) >= desired.replicas
