"""The PodDisruptionBudget NAME: a drained node takes one replica at a time, or what `disruption` says."""

from __future__ import annotations

from typing import Any

from octavo_operator.api.types import ModelDeployment
from octavo_operator.desired import names
from octavo_operator.desired.metadata import object_metadata


def render_pdb(resource: ModelDeployment) -> dict[str, Any] | None:
    """None where there can be one replica only and nobody asks: a budget could then only hinder the draining of its node."""
    asked = resource.spec.disruption.max_unavailable
    if asked is None and resource.most_replicas < 2:
        return None
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": object_metadata(resource, resource.name),
        "spec": {
            "maxUnavailable": 1 if asked is None else asked,
            # A pod that crashes must not keep a node from being drained.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": names.pod_selector(resource.name)},
        },
    }
