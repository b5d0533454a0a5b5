"""One Deployment per revision: NAME-HASH, its template fixed, so that it never rolls by itself."""

from __future__ import annotations

from typing import Any

from octavo_operator.api.types import ModelDeployment
from octavo_operator.desired import names
from octavo_operator.desired.merge import strategic_merge
from octavo_operator.desired.metadata import object_metadata
from octavo_operator.desired.pod import PodSettings, pod_template


def render_deployment(resource: ModelDeployment, settings: PodSettings, *, replicas: int) -> dict[str, Any]:
    template = pod_template(resource, settings)
    revision = names.fingerprint(template)
    labels = names.revision_labels(resource.name, revision)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": object_metadata(resource, names.deployment_name(resource.name, revision), labels=labels),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 0,
            "selector": {"matchLabels": {**names.pod_selector(resource.name), names.REVISION_LABEL: revision}},
            "template": strategic_merge(template, {"metadata": {"labels": {names.REVISION_LABEL: revision}}}),
        },
    }
