"""Which autoscaler a resource gets, and its object; at any time one alone writes `spec.replicas`.

| `scaling.backend` | what scales | its object |
|---|---|---|
| HPA | the HPA controller, by a metric of the pods | HorizontalPodAutoscaler |
| KEDA | KEDA, by a query of Prometheus | ScaledObject |
| BuiltIn | the operator, by the loads that it reads | none |
| Auto | the first of them that the cluster has what it takes for | |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octavo_operator.api.types import ModelDeployment
from octavo_operator.desired.hpa import render_hpa
from octavo_operator.desired.scaledobject import render_scaled_object

HPA, KEDA, BUILT_IN = "HPA", "KEDA", "BuiltIn"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingApis:
    """What the cluster has for autoscalers."""

    has_custom_metrics: bool = True
    """Somebody serves custom.metrics.k8s.io, we or another."""
    adapter_trouble: str = ""
    """Why ours may not serve it; "" when all is well."""
    prometheus: str = ""
    """Base URL that KEDA asks; "" where nobody has given one."""
    keda_trouble: str = ""
    """Why KEDA cannot be used, and the remedy; "" where it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaler:
    """What scales a resource."""

    kind: str = HPA
    prometheus: str = ""
    trouble: str = ""
    """Why it cannot scale, and the remedy; then it has no object."""


def choose_scaler(resource: ModelDeployment, apis: ScalingApis) -> Scaler:
    """Of one that is not scaled nobody asks."""
    backend = resource.spec.scaling.backend if resource.spec.scaling else HPA
    if backend == "Auto":
        backend = _first(apis)
    if backend == KEDA:
        return Scaler(kind=KEDA, prometheus=apis.prometheus, trouble=apis.keda_trouble)
    return Scaler(kind=backend)


def render_scaler(resource: ModelDeployment, scaler: Scaler) -> dict[str, Any] | None:
    """None where it needs no object, or cannot scale."""
    if resource.spec.scaling is None or scaler.trouble or scaler.kind == BUILT_IN:
        return None
    if scaler.kind == KEDA:
        return render_scaled_object(resource, resource.spec.scaling, prometheus=scaler.prometheus)
    return render_hpa(resource, resource.spec.scaling)


def _first(apis: ScalingApis) -> str:
    if apis.has_custom_metrics:
        return HPA
    return BUILT_IN if apis.keda_trouble else KEDA
