"""The metadata that every object of ours has: labels, and an owner whose deletion takes the object along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo_operator.api.types import API_VERSION, KIND, ModelDeployment
from octavo_operator.desired import names


def object_metadata(resource: ModelDeployment, name: str, *, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": resource.namespace,
        "labels": dict(labels or names.object_labels(resource.name)),
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": resource.name,
                "uid": resource.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
