"""The documents of `custom.metrics.k8s.io`, field by field as Kubernetes' own types serialise them.

Pure: values in, JSON-ready dictionaries out. Source: k8s.io/metrics/pkg/apis/custom_metrics/{v1beta1,v1beta2}/types.go
and k8s.io/apimachinery/pkg/apis/meta/v1/types.go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from octavo_operator.metrics_adapter.quantity import format_quantity

GROUP = "custom.metrics.k8s.io"
VERSIONS = ("v1beta2", "v1beta1")
"""The preferred one first."""
PRESSURE_METRIC = "octavo_kv_pressure_ratio"
METRICS = (PRESSURE_METRIC,)

PODS = "pods"
MODEL_DEPLOYMENTS = "modeldeployments.octavo.dev"
"""A resource outside the core group is named with its group, as `schema.GroupResource` prints it."""
KINDS = {PODS: ("v1", "Pod"), MODEL_DEPLOYMENTS: ("octavo.dev/v1alpha1", "ModelDeployment")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One value of a metric for one object."""

    resource: str
    """A key of `KINDS`."""
    namespace: str
    name: str
    metric: str
    value: float
    at: float
    """Unix seconds."""


def api_group_list() -> dict[str, Any]:
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group()]}


def api_group() -> dict[str, Any]:
    return {"kind": "APIGroup", "apiVersion": "v1", **_group()}


def api_resource_list(version: str) -> dict[str, Any]:
    resources = [
        {
            "name": f"{resource}/{metric}",
            "singularName": "",
            "namespaced": True,
            "kind": "MetricValueList",
            "verbs": ["get"],
        }
        for resource in sorted(KINDS)
        for metric in METRICS
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{GROUP}/{version}", "resources": resources}


def metric_value_list(version: str, measurements: Sequence[Measurement]) -> dict[str, Any]:
    return {
        "kind": "MetricValueList",
        "apiVersion": f"{GROUP}/{version}",
        "metadata": {},
        "items": [_metric_value(version, measurement) for measurement in measurements],
    }


def _group() -> dict[str, Any]:
    versions = [{"groupVersion": f"{GROUP}/{version}", "version": version} for version in VERSIONS]
    return {"name": GROUP, "versions": versions, "preferredVersion": versions[0]}


def _metric_value(version: str, measurement: Measurement) -> dict[str, Any]:
    api_version, kind = KINDS[measurement.resource]
    described = {
        "kind": kind,
        "namespace": measurement.namespace,
        "name": measurement.name,
        "apiVersion": api_version,
    }
    # v1beta1 spells the identifier flat, v1beta2 nests it; `selector` is present and null in both.
    identifier: dict[str, Any] = (
        {"metricName": measurement.metric, "selector": None}
        if version == "v1beta1"
        else {"metric": {"name": measurement.metric, "selector": None}}
    )
    return {
        "describedObject": described,
        **identifier,
        "timestamp": datetime.fromtimestamp(measurement.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "value": format_quantity(measurement.value),
    }
