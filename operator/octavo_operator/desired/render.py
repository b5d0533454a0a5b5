"""All objects that a ModelDeployment asks for, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octavo_operator.api.types import JsonObject, ModelDeployment
from octavo_operator.desired import names
from octavo_operator.desired.deployment import render_deployment
from octavo_operator.desired.hpa import render_hpa
from octavo_operator.desired.pdb import render_pdb
from octavo_operator.desired.pod import PodSettings
from octavo_operator.desired.service import render_service
from octavo_operator.desired.serviceaccount import render_service_account

ObjectKey = tuple[str, str]
"""(kind, name) of an object in the resource's namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What should be there; `objects` in the order in which they are made."""

    revision: str
    replicas: int
    objects: tuple[JsonObject, ...]

    @property
    def keys(self) -> frozenset[ObjectKey]:
        return frozenset(key_of(manifest) for manifest in self.objects)


def render(resource: ModelDeployment, settings: PodSettings) -> Desired:
    """Accounts and Services come before the pods that need them, scalers after."""
    replicas = resource.wanted_replicas
    deployment = render_deployment(resource, settings, replicas=replicas)
    optional = [manifest for manifest in (render_pdb(resource), render_hpa(resource)) if manifest is not None]
    objects = [render_service_account(resource), render_service(resource), deployment, *optional]
    return Desired(
        revision=deployment["metadata"]["labels"][names.REVISION_LABEL],
        replicas=replicas,
        objects=tuple(_stamped(manifest) for manifest in objects),
    )


def key_of(manifest: JsonObject) -> ObjectKey:
    return manifest["kind"], manifest["metadata"]["name"]


def _stamped(manifest: dict[str, Any]) -> dict[str, Any]:
    annotations = {names.APPLIED_ANNOTATION: names.fingerprint(manifest)}
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}
