"""The ServiceAccount NAME: an identity of its own for each model's pods, without any token mounted."""

from __future__ import annotations

from typing import Any

from octavo_operator.api.types import ModelDeployment
from octavo_operator.desired.metadata import object_metadata


def render_service_account(resource: ModelDeployment) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": object_metadata(resource, resource.name),
        "automountServiceAccountToken": False,
    }
