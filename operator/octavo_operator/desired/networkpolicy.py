"""The NetworkPolicy NAME: who may connect to the replicas, so that nobody goes around the gateway's keys and quotas.

What it allows is the installation's to say, the same for all; here it only gets its owner and the pods that it is for.
The pods of a download are not among them: they answer nothing but how far they are.
"""

from __future__ import annotations

from typing import Any

from octavo_operator.api.types import JsonObject, ModelDeployment
from octavo_operator.desired import names
from octavo_operator.desired.metadata import object_metadata


def render_network_policy(resource: ModelDeployment, rules: JsonObject | None) -> dict[str, Any] | None:
    """`rules` are a NetworkPolicy's policyTypes, ingress and egress; None: there is to be no policy."""
    if rules is None:
        return None
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": object_metadata(resource, resource.name),
        "spec": {"podSelector": {"matchLabels": names.pod_selector(resource.name)}, **rules},
    }
