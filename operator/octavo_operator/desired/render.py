"""All objects that a ModelDeployment asks for, as one value."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo_operator.api.rollout_status import RolloutStatus
from octavo_operator.api.scaling_status import ScalingStatus
from octavo_operator.api.types import JsonObject, ModelDeployment
from octavo_operator.desired import names
from octavo_operator.desired.cache import claims_in
from octavo_operator.desired.deployment import render_deployment
from octavo_operator.desired.pdb import render_pdb
from octavo_operator.desired.revision import CONTROLLER_REVISION, Revision, render_controller_revision
from octavo_operator.desired.scaler import Scaler, render_scaler
from octavo_operator.desired.service import render_service
from octavo_operator.desired.serviceaccount import render_service_account

ObjectKey = tuple[str, str]
"""(kind, name) of an object in the resource's namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What should be there; `objects` in the order in which they are made."""

    revision: str
    """The revision that is rolled out."""
    replicas: int
    """Replicas asked for, over all revisions."""
    objects: tuple[JsonObject, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    """Replicas of each revision that has a Deployment, rendered here or not."""
    kept: frozenset[ObjectKey] = frozenset()
    """Objects that stay as they are though nothing is asked of them."""
    rollout: RolloutStatus = field(default_factory=RolloutStatus)
    scaling: ScalingStatus = field(default_factory=ScalingStatus)
    scaler: Scaler = field(default_factory=Scaler)

    @property
    def job(self) -> ObjectKey | None:
        """The Job that fetches the model; None where there is none."""
        return job_of(self.objects)

    @property
    def claims_to_fill(self) -> frozenset[str]:
        """Names of the claims that the Job fills."""
        return frozenset().union(*(claims_in(manifest) for manifest in self.objects if manifest["kind"] == "Job"))

    @property
    def keys(self) -> frozenset[ObjectKey]:
        return frozenset(key_of(manifest) for manifest in self.objects)


def render(
    resource: ModelDeployment,
    fleets: Sequence[tuple[Revision, int]],
    *,
    counts: Mapping[str, int],
    kept: Collection[str],
    rollout: RolloutStatus,
    first: Sequence[JsonObject] = (),
    scaler: Scaler,
) -> Desired:
    """Accounts, Services, claims and templates come before the pods that need them, scalers after.

    `fleets` are the revisions that have replicas or pods, the one that is rolled out first; `first` is what has to be
    there before the pods: their NetworkPolicy, and what fetches the model where that is no business of theirs.
    """
    target = fleets[0][0]
    optional = [
        manifest for manifest in (render_pdb(resource), render_scaler(resource, scaler)) if manifest is not None
    ]
    objects = [
        render_service_account(resource),
        render_service(resource),
        *first,
        render_controller_revision(resource, target, number=target.number),
        *(render_deployment(resource, revision, replicas=replicas) for revision, replicas in fleets),
        *optional,
    ]
    return Desired(
        revision=target.name,
        replicas=resource.wanted_replicas,
        objects=tuple(_stamped(manifest) for manifest in objects),
        counts=counts,
        kept=frozenset((CONTROLLER_REVISION, names.deployment_name(resource.name, name)) for name in kept),
        rollout=rollout,
        scaler=scaler,
    )


def job_of(objects: Sequence[JsonObject]) -> ObjectKey | None:
    """The Job among them."""
    return next((key_of(manifest) for manifest in objects if manifest["kind"] == "Job"), None)


def key_of(manifest: JsonObject) -> ObjectKey:
    return manifest["kind"], manifest["metadata"]["name"]


def _stamped(manifest: JsonObject) -> dict[str, Any]:
    annotations = {names.APPLIED_ANNOTATION: names.fingerprint(manifest)}
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}
