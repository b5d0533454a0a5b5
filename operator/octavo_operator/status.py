"""The whole status, computed once from what was observed; it is written only where it differs from what is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo_operator.api.types import JsonObject, ModelDeployment
from octavo_operator.conditions import Condition, make_conditions, make_failed_conditions, merge_conditions
from octavo_operator.desired import names
from octavo_operator.desired.render import Desired
from octavo_operator.desired.service import service_url
from octavo_operator.finding import Finding
from octavo_operator.observed import Capacity, Observed, generation_of
from octavo_operator.start_report import make_cold_start, make_download
from octavo_operator.units import two_digits

PRESSURE_STEP = 0.05
"""Finer changes are not worth a write."""


def make_status(
    resource: ModelDeployment, desired: Desired, observed: Observed, *, gateway_url: str, now: str
) -> dict[str, Any]:
    """Status of a valid resource; `now` is an RFC 3339 time for conditions that changed."""
    status = _common(observed, make_conditions(resource, desired, observed), generation=resource.generation, now=now)
    return {
        **status,
        "updatedReplicas": sum(pod.revision == desired.revision for pod in observed.living_pods),
        "endpoint": f"{gateway_url}/v1" if gateway_url else service_url(resource),
        "servedModels": list(resource.served_names),
        "scaling": {**desired.scaling.as_json(), "desired": desired.replicas, **_pressure(observed)},
        **_given(
            download=make_download(observed.startups.values()),
            coldStart=make_cold_start(observed),
            capacity=make_capacity(observed),
        ),
        "rollout": desired.rollout.as_json(),
    }


def make_failed_status(observed: Observed, failure: Finding, *, now: str) -> dict[str, Any]:
    """Status where the spec is invalid or a step failed: the old one, with what could be observed and the failure."""
    conditions = make_failed_conditions(observed, failure)
    generation = generation_of(observed.resource)
    old = {name: value for name, value in observed.status.items() if name != "scaling"}
    return {**old, **_common(observed, conditions, generation=generation, now=now), **_loads(observed)}


def status_patch(old: JsonObject, new: JsonObject) -> dict[str, Any]:
    """The JSON merge patch from `old` to `new`; empty where they are equal."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        if key not in old:
            patch[key] = value
        elif isinstance(value, Mapping) and isinstance(old[key], Mapping):
            below = status_patch(old[key], value)
            if below:
                patch[key] = below
        elif value != old[key]:
            patch[key] = value
    return patch


def _common(observed: Observed, conditions: tuple[Condition, ...], *, generation: int, now: str) -> dict[str, Any]:
    return {
        "observedGeneration": generation,
        "conditions": merge_conditions(
            observed.status.get("conditions", ()), conditions, generation=generation, now=now
        ),
        "replicas": len(observed.living_pods),
        "readyReplicas": len(observed.ready_pods()),
        "drainingReplicas": sum(pod.is_terminating for pod in observed.pods),
        "selector": names.selector_text(str(observed.resource["metadata"]["name"])),
    }


def _loads(observed: Observed) -> dict[str, JsonObject]:
    """What the replicas tell, whatever became of the spec: until the status says the same it is looked at every round."""
    scaling = {name: value for name, value in (observed.status.get("scaling") or {}).items() if name != "pressure"}
    return _given(scaling={**scaling, **_pressure(observed)}, capacity=make_capacity(observed))


def make_capacity(observed: Observed) -> JsonObject | None:
    """Of one replica; what was told before where no replica tells it now."""
    if observed.capacity is not None:
        return capacity_json(observed.capacity)
    old: JsonObject | None = observed.status.get("capacity")
    return old


def capacity_json(capacity: Capacity) -> dict[str, int]:
    """Without a speed as long as none was seen."""
    speed = two_digits(capacity.tokens_per_second)
    return {
        "kvTokensPerReplica": capacity.kv_tokens,
        "maxConcurrent": capacity.max_num_seqs,
        **({"tokensPerSecond": speed} if speed else {}),
    }


def _given(**fields: JsonObject | None) -> dict[str, JsonObject]:
    return {name: value for name, value in fields.items() if value}


def _pressure(observed: Observed) -> dict[str, str]:
    if observed.pressure is None:
        return {}
    return {"pressure": pressure_text(observed.pressure)}


def pressure_text(pressure: float) -> str:
    """Rounded to `PRESSURE_STEP`, without needless zeros: "0", "0.35", "2.5"."""
    return f"{round(round(pressure / PRESSURE_STEP) * PRESSURE_STEP, 2):g}"
