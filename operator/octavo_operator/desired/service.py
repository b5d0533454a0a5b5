"""The Service NAME over the pods of all revisions: for people without a gateway, and for scrapers."""

from __future__ import annotations

from typing import Any

from octavo_operator.api.types import ModelDeployment
from octavo_operator.desired import names
from octavo_operator.desired.engine_args import SERVER_PORT
from octavo_operator.desired.metadata import object_metadata


def render_service(resource: ModelDeployment) -> dict[str, Any]:
    port = {"name": names.PORT_NAME, "port": SERVER_PORT, "targetPort": names.PORT_NAME, "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": object_metadata(resource, resource.name),
        "spec": {"type": "ClusterIP", "selector": names.pod_selector(resource.name), "ports": [port]},
    }


def service_url(resource: ModelDeployment) -> str:
    """Base URL of the API inside the cluster."""
    return f"http://{resource.name}.{resource.namespace}.svc:{SERVER_PORT}/v1"
