"""Whether the autoscaler of a resource works, as its own object tells; of the built-in one, as the loads do."""

from __future__ import annotations

from dataclasses import dataclass

from octavo_operator.api.types import JsonObject, ModelDeployment
from octavo_operator.desired.scaler import BUILT_IN, KEDA, Scaler
from octavo_operator.finding import quote
from octavo_operator.observed import Observed

NO_PRESSURE = "no replica is ready, so there is no pressure to scale on"
NOT_YET = "the autoscaler has not looked yet"

AT_ZERO = "ScalingDisabled"
"""The reason of an HPA that rests; of one whose model was woken it is outdated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalerView:
    is_active: bool | None
    """None before it has looked."""
    message: str


def view_scaler(resource: ModelDeployment, scaler: Scaler, observed: Observed) -> ScalerView:
    """Of a scaler that has what it takes."""
    if scaler.kind == BUILT_IN:
        return _built_in(observed)
    if scaler.kind == KEDA:
        return _told(observed, _of_keda(observed, ("ScaledObject", resource.name)))
    trouble = observed.scaling_apis.adapter_trouble
    ours = f"; the operator's metrics adapter: {quote(trouble)}" if trouble else ""
    told = _condition(observed, ("HorizontalPodAutoscaler", resource.name), "ScalingActive")
    return _told(observed, told, ours)


def _built_in(observed: Observed) -> ScalerView:
    if observed.pressures:
        return ScalerView(is_active=True, message="the operator scales by the pressure that it reads from the replicas")
    silent = NO_PRESSURE if not observed.ready_pods() else "no ready replica tells its pressure"
    return ScalerView(is_active=False, message=silent)


def _of_keda(observed: Observed, key: tuple[str, str]) -> JsonObject | None:
    """Ready says that the object is right; where its autoscaler finds no metric of a replica, another condition does."""
    hpa = _condition(observed, key, "HPAActive")
    if hpa is not None and hpa["status"] == "False" and observed.ready_pods():
        return hpa
    return _condition(observed, key, "Ready")


def _told(observed: Observed, condition: JsonObject | None, ours: str = "") -> ScalerView:
    """By a condition of its object, which is Unknown or absent, or still of zero replicas, until it has looked."""
    if condition is None or condition["status"] == "Unknown" or condition.get("reason") == AT_ZERO:
        return ScalerView(is_active=None, message=f"{NOT_YET}{ours}")
    message = quote(str(condition.get("message", "")))
    if condition["status"] == "True":
        return ScalerView(is_active=True, message=message)
    return ScalerView(is_active=False, message=f"{message if observed.ready_pods() else NO_PRESSURE}{ours}")


def _condition(observed: Observed, key: tuple[str, str], kind: str) -> JsonObject | None:
    conditions = observed.objects.get(key, {}).get("status", {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == kind), None)
