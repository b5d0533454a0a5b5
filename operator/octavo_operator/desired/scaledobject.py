"""KEDA's ScaledObject NAME on the KV pressure that Prometheus has scraped; it scales the ModelDeployment."""

from __future__ import annotations

from typing import Any

from octavo_operator.api.types import API_VERSION, KIND, ModelDeployment, Scaling
from octavo_operator.desired import names
from octavo_operator.desired.hpa import behavior_of
from octavo_operator.desired.metadata import object_metadata


def render_scaled_object(resource: ModelDeployment, scaling: Scaling, *, prometheus: str) -> dict[str, Any] | None:
    """None at zero replicas: KEDA would wake the model to its minReplicaCount, and only a request shall."""
    if resource.wanted_replicas == 0:
        return None
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": object_metadata(resource, resource.name),
        "spec": {
            "scaleTargetRef": {"apiVersion": API_VERSION, "kind": KIND, "name": resource.name},
            "minReplicaCount": max(1, scaling.min_replicas),
            "maxReplicaCount": scaling.max_replicas,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behavior_of(scaling)}},
            "triggers": [_pressure_trigger(resource, scaling, prometheus)],
        },
    }


def _pressure_trigger(resource: ModelDeployment, scaling: Scaling, prometheus: str) -> dict[str, Any]:
    labels = f'namespace="{resource.namespace}", modeldeployment="{resource.name}"'
    return {
        "type": "prometheus",
        # Replicas = sum of the pressures / threshold, as an HPA on the pods' own metric has it.
        "metricType": "AverageValue",
        "metadata": {
            "serverAddress": prometheus,
            "query": f"sum({names.PRESSURE_METRIC}{{{labels}}})",
            "threshold": scaling.target_pressure,
            # A Prometheus that has lost the pods is no idle model.
            "ignoreNullValues": "false",
        },
    }
