"""One Deployment per revision: NAME-HASH, its template fixed, so that it never rolls by itself."""

from __future__ import annotations

from typing import Any

from octavo_operator.api.types import ModelDeployment
from octavo_operator.desired import names
from octavo_operator.desired.metadata import object_metadata
from octavo_operator.desired.revision import Revision


def render_deployment(resource: ModelDeployment, revision: Revision, *, replicas: int) -> dict[str, Any]:
    labels = names.revision_labels(resource.name, revision.name)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": object_metadata(resource, names.deployment_name(resource.name, revision.name), labels=labels),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 0,
            "selector": {"matchLabels": {**names.pod_selector(resource.name), names.REVISION_LABEL: revision.name}},
            "template": revision.template,
        },
    }
