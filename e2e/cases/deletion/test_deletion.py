"""Deleting the resource removes everything that came of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.cluster.kubectl import Kubectl
from e2e.cluster.models import apply_model, read_manifest
from e2e.cluster.octavo import Octavo
from e2e.cluster.waiting import wait_until

pytestmark = pytest.mark.e2e

MANIFEST = Path(__file__).with_name("modeldeployment.yaml")
EXPECTED = {"deployment.apps", "horizontalpodautoscaler.autoscaling", "poddisruptionbudget.policy", "pod", "service"}


def test_deleted_resource_leaves_nothing_in_its_namespace(octavo: Octavo, namespace: str) -> None:
    """Objects of every kind that the cluster can list are compared, not only those that we know of."""
    kubectl = octavo.target.kubectl
    kinds = _listable_kinds(kubectl)
    before = _objects(kubectl, kinds, namespace)

    model = apply_model(octavo, read_manifest(MANIFEST, octavo), namespace)
    wait_until(lambda: len(model.pods()) == 1, "the pod exists", limit_s=30, describe=model.describe)
    made = {name.split("/")[0] for name in _objects(kubectl, kinds, namespace) - before}
    model.delete()

    assert made >= EXPECTED
    wait_until(
        lambda: _objects(kubectl, kinds, namespace) == before,
        "everything that came with the resource is gone",
        limit_s=60,
        describe=lambda: str(sorted(_objects(kubectl, kinds, namespace) - before)),
    )


def _listable_kinds(kubectl: Kubectl) -> list[str]:
    kinds = kubectl("api-resources", "--verbs=list", "--namespaced", "--output=name").split()
    # Events stay for an hour, and metrics are no objects.
    return [kind for kind in kinds if not kind.startswith("events") and "metrics.k8s.io" not in kind]


def _objects(kubectl: Kubectl, kinds: list[str], namespace: str) -> set[str]:
    return set(
        kubectl("get", ",".join(kinds), f"--namespace={namespace}", "--output=name", "--ignore-not-found").split()
    )
