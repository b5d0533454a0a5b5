"""A revision: one pod template as it was rendered once, and the part of the spec that it was rendered from.

Kept in an owned ControllerRevision, because a newer operator can no longer render what an older one did: drift is
restored from it, a rollout goes back to it, and it outlives the operator that made it. Its data never changes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from octavo_operator.api.types import (
    Access,
    Disruption,
    JsonObject,
    ModelDeployment,
    ModelDeploymentSpec,
    Rollout,
    Routing,
)
from octavo_operator.api.validation import parse_spec
from octavo_operator.desired import names
from octavo_operator.desired.merge import strategic_merge
from octavo_operator.desired.metadata import object_metadata
from octavo_operator.desired.pod import PodSettings, pod_template
from octavo_operator.errors import SpecInvalidError

KEPT_REVISIONS = 5
"""Templates to go back to; those that still have pods come on top."""
CONTROLLER_REVISION = "ControllerRevision"
OUTSIDE_OF_TEMPLATE = ("replicas", "scaling", "routing", "access", "rollout", "disruption", "suspend")
"""Fields of the spec that no pod template depends on: changing them makes no revision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    name: str
    """Fingerprint of the template without its revision label."""
    template: JsonObject = field(repr=False)
    inputs: JsonObject = field(repr=False)
    """The spec that it was rendered from, without what is `OUTSIDE_OF_TEMPLATE`."""
    number: int = 0
    """Grows with each use; 0 where it was never kept."""


def render_revision(resource: ModelDeployment, settings: PodSettings) -> Revision:
    """What this operator makes of the spec."""
    template = pod_template(resource, settings)
    name = names.fingerprint(template)
    return Revision(
        name=name,
        template=strategic_merge(template, {"metadata": {"labels": {names.REVISION_LABEL: name}}}),
        inputs={key: value for key, value in resource.given.items() if key not in OUTSIDE_OF_TEMPLATE},
    )


def choose_revision(resource: ModelDeployment, rendered: Revision, kept: Mapping[str, Revision]) -> Revision:
    """The revision that the spec asks for: with Keep the last one that was made of the same inputs."""
    if resource.spec.rollout.operator_upgrade == "Keep":
        same = [each for each in kept.values() if _has_same_inputs(each, rendered, resource.spec)]
        if same:
            return max(same, key=lambda each: each.number)
    return kept.get(rendered.name, rendered)


def render_controller_revision(resource: ModelDeployment, revision: Revision, *, number: int) -> dict[str, Any]:
    name = names.deployment_name(resource.name, revision.name)
    labels = names.revision_labels(resource.name, revision.name)
    return {
        "apiVersion": "apps/v1",
        "kind": CONTROLLER_REVISION,
        "metadata": object_metadata(resource, name, labels=labels),
        "data": {"spec": revision.inputs, "template": revision.template},
        "revision": number,
    }


def read_revision(controller_revision: JsonObject) -> Revision | None:
    """None where it holds no template, so that it is not one of ours."""
    data = controller_revision.get("data")
    name = controller_revision["metadata"].get("labels", {}).get(names.REVISION_LABEL)
    if not name or not isinstance(data, Mapping) or not isinstance(data.get("template"), Mapping):
        return None
    inputs = data.get("spec")
    return Revision(
        name=str(name),
        template=data["template"],
        inputs=inputs if isinstance(inputs, Mapping) else {},
        number=int(controller_revision.get("revision") or 0),
    )


def number_of(target: Revision, kept: Mapping[str, Revision]) -> int:
    """The highest of all, so that the order of the numbers is the order of use."""
    highest = max((each.number for name, each in kept.items() if name != target.name), default=0)
    return target.number if target.number > highest else highest + 1


def revisions_to_keep(kept: Mapping[str, Revision], in_use: Collection[str]) -> frozenset[str]:
    """All that are in use, and of the others the newest up to `KEPT_REVISIONS` in all."""
    used = [name for name in kept if name in in_use]
    spare = sorted((name for name in kept if name not in in_use), key=lambda name: kept[name].number, reverse=True)
    return frozenset([*used, *spare[: max(0, KEPT_REVISIONS - len(in_use))]])


def _has_same_inputs(kept: Revision, rendered: Revision, spec: ModelDeploymentSpec) -> bool:
    """Whether both mean the same to this operator, whatever newer schemas have filled in since."""
    if kept.inputs == rendered.inputs:
        return True
    try:
        return _inputs_of(parse_spec(kept.inputs)) == _inputs_of(spec)
    except SpecInvalidError:
        return False


def _inputs_of(spec: ModelDeploymentSpec) -> ModelDeploymentSpec:
    return replace(
        spec,
        replicas=None,
        scaling=None,
        routing=Routing(),
        access=Access(),
        rollout=Rollout(),
        disruption=Disruption(),
        suspend=False,
    )
