"""The chart's own life: its test, a second install of the same, and an uninstall that leaves nothing dangling."""

from __future__ import annotations

import json

import pytest

from e2e.cluster.kubectl import Kubectl
from e2e.cluster.octavo import NAMESPACE, RELEASE, Octavo, install, uninstall
from e2e.cluster.waiting import wait_until

pytestmark = pytest.mark.e2e

METRICS_API = "v1beta2.custom.metrics.k8s.io"
CLUSTER_KINDS = (
    "clusterroles,clusterrolebindings,apiservices,validatingwebhookconfigurations,mutatingwebhookconfigurations"
)


def test_helm_test_passes(octavo: Octavo) -> None:
    assert "Phase:          Succeeded" in octavo.helm("test", RELEASE, f"--namespace={NAMESPACE}", "--timeout=60s")


def test_adapter_is_available_to_the_api_server(octavo: Octavo) -> None:
    """Discovery through the aggregation layer, as the HPA's controller does it."""
    found = json.loads(octavo.target.kubectl("get", "--raw=/apis/custom.metrics.k8s.io/v1beta2"))

    assert "pods/octavo_kv_pressure_ratio" in {resource["name"] for resource in found["resources"]}


def test_the_same_chart_again_changes_no_pod(octavo: Octavo) -> None:
    kubectl = octavo.target.kubectl
    before = _pods(kubectl)

    install(octavo.target)

    assert before == _pods(kubectl)
    assert _available(kubectl)


def test_uninstall_leaves_nothing_but_the_crd(octavo: Octavo) -> None:
    """A dangling APIService would block the deletion of every namespace."""
    kubectl = octavo.target.kubectl

    uninstall(octavo.target)

    wait_until(
        lambda: not _ours(kubectl), "no cluster-scoped object is left", limit_s=30, describe=lambda: str(_ours(kubectl))
    )
    kubectl("delete", "namespace", NAMESPACE, "--timeout=60s")
    assert kubectl.works("get", "customresourcedefinition", "modeldeployments.octavo.dev")


def _pods(kubectl: Kubectl) -> list[str]:
    return sorted(pod["metadata"]["uid"] for pod in kubectl.items("pods", namespace=NAMESPACE))


def _available(kubectl: Kubectl) -> bool:
    conditions = kubectl.get("apiservice", METRICS_API)["status"]["conditions"]
    return any(condition["type"] == "Available" and condition["status"] == "True" for condition in conditions)


def _ours(kubectl: Kubectl) -> list[str]:
    names = kubectl("get", CLUSTER_KINDS, "--output=name").split()
    # The API of the CRD, which stays, has an APIService of the API server's own.
    kept = "apiservice.apiregistration.k8s.io/v1alpha1.octavo.dev"
    return [name for name in names if ("octavo" in name or "custom.metrics.k8s.io" in name) and name != kept]
