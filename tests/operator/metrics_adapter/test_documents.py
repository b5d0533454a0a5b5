"""The documents, literally as Kubernetes' own API servers and client libraries spell them."""

from __future__ import annotations

from octavo_operator.metrics_adapter.documents import (
    Measurement,
    api_group,
    api_group_list,
    api_resource_list,
    metric_value_list,
)

MEASURED = Measurement(
    resource="pods",
    namespace="default",
    name="qwen-1",
    metric="octavo_kv_pressure_ratio",
    value=0.85,
    at=1_800_000_000.9,
)


def test_the_group_list():
    versions = [
        {"groupVersion": "custom.metrics.k8s.io/v1beta2", "version": "v1beta2"},
        {"groupVersion": "custom.metrics.k8s.io/v1beta1", "version": "v1beta1"},
    ]
    group = {"name": "custom.metrics.k8s.io", "versions": versions, "preferredVersion": versions[0]}

    assert api_group_list() == {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]}
    assert api_group() == {"kind": "APIGroup", "apiVersion": "v1", **group}


def test_the_resource_list():
    assert api_resource_list("v1beta1") == {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": "custom.metrics.k8s.io/v1beta1",
        "resources": [
            {
                "name": "modeldeployments.octavo.dev/octavo_kv_pressure_ratio",
                "singularName": "",
                "namespaced": True,
                "kind": "MetricValueList",
                "verbs": ["get"],
            },
            {
                "name": "pods/octavo_kv_pressure_ratio",
                "singularName": "",
                "namespaced": True,
                "kind": "MetricValueList",
                "verbs": ["get"],
            },
        ],
    }


def test_a_metric_of_v1beta2_nests_its_identifier():
    assert metric_value_list("v1beta2", [MEASURED]) == {
        "kind": "MetricValueList",
        "apiVersion": "custom.metrics.k8s.io/v1beta2",
        "metadata": {},
        "items": [
            {
                "describedObject": {"kind": "Pod", "namespace": "default", "name": "qwen-1", "apiVersion": "v1"},
                "metric": {"name": "octavo_kv_pressure_ratio", "selector": None},
                "timestamp": "2027-01-15T08:00:00Z",
                "value": "850m",
            }
        ],
    }


def test_a_metric_of_v1beta1_is_flat():
    (item,) = metric_value_list("v1beta1", [MEASURED])["items"]

    assert item["metricName"] == "octavo_kv_pressure_ratio"
    assert item["selector"] is None
    assert "metric" not in item
