"""The HorizontalPodAutoscaler NAME on KV pressure; it scales the ModelDeployment, never a Deployment."""

from __future__ import annotations

from typing import Any

from octavo_operator.api.quantity import milli
from octavo_operator.api.types import API_VERSION, KIND, ModelDeployment, Scaling
from octavo_operator.desired import names
from octavo_operator.desired.metadata import object_metadata

# Up: the pressure is not capped and already names the right number; the controller's default of max(2n, 4) would cut a
# step from 2 to 8 to 4. Down: slowly, because a replica that has gone takes its prefix cache along.
SCALE_UP: dict[str, Any] = {
    "stabilizationWindowSeconds": 0,
    "selectPolicy": "Max",
    "policies": [{"type": "Percent", "value": 900, "periodSeconds": 15}],
}
SCALE_DOWN: dict[str, Any] = {
    "stabilizationWindowSeconds": 300,
    "selectPolicy": "Max",
    "policies": [{"type": "Pods", "value": 1, "periodSeconds": 120}],
}


def render_hpa(resource: ModelDeployment, scaling: Scaling) -> dict[str, Any]:
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": object_metadata(resource, resource.name),
        "spec": {
            "scaleTargetRef": {"apiVersion": API_VERSION, "kind": KIND, "name": resource.name},
            # From zero only the gateway wakes: a metric of pods has no value where there are none.
            "minReplicas": max(1, scaling.min_replicas),
            "maxReplicas": scaling.max_replicas,
            "metrics": [_pressure_metric(scaling)],
            "behavior": behavior_of(scaling),
        },
    }


def behavior_of(scaling: Scaling) -> dict[str, Any]:
    """As autoscaling/v2 has it, whatever scales: either side that the resource gives replaces ours whole."""
    return {
        "scaleUp": dict(scaling.behavior.get("scaleUp", SCALE_UP)),
        "scaleDown": dict(scaling.behavior.get("scaleDown", SCALE_DOWN)),
    }


def _pressure_metric(scaling: Scaling) -> dict[str, Any]:
    target = {"type": "AverageValue", "averageValue": milli(scaling.target_pressure)}
    return {"type": "Pods", "pods": {"metric": {"name": names.PRESSURE_METRIC}, "target": target}}
