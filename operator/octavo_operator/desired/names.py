"""Every name and label that the operator gives, each made in one place."""

from __future__ import annotations

import hashlib
import json
from typing import Any

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
COMPONENT_LABEL = "app.kubernetes.io/component"
NAME_LABEL = "octavo.dev/modeldeployment"
REVISION_LABEL = "octavo.dev/revision"
APPLIED_ANNOTATION = "octavo.dev/applied"
"""Hash of the manifest that was applied last: tells that a field was taken out, which a comparison cannot see."""

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
"""Kubernetes' own annotation: of a ReplicaSet's ready pods the one with the least goes first."""

MANAGED_BY = "octavo"
COMPONENT = "server"
DOWNLOAD_COMPONENT = "download"
DOWNLOAD_LABEL = "octavo.dev/download-for"
"""Of the download Job's pods, in place of NAME_LABEL: no Service, scaler or gateway may take them for replicas."""
FIELD_MANAGER = "octavo-operator"
ALL_OBJECTS_SELECTOR = f"{MANAGED_BY_LABEL}={MANAGED_BY},{COMPONENT_LABEL}={COMPONENT}"

ALL_PODS_SELECTOR = f"{MANAGED_BY_LABEL}={MANAGED_BY},{COMPONENT_LABEL} in ({COMPONENT},{DOWNLOAD_COMPONENT})"

CONTAINER = "server"
DOWNLOAD_CONTAINER = "download"
PORT_NAME = "http"
PRESSURE_METRIC = "octavo_kv_pressure_ratio"


def object_labels(name: str) -> dict[str, str]:
    """Labels of every object of a ModelDeployment."""
    return {MANAGED_BY_LABEL: MANAGED_BY, COMPONENT_LABEL: COMPONENT, NAME_LABEL: name}


def revision_labels(name: str, revision: str) -> dict[str, str]:
    """Labels of a revision's Deployment and pods."""
    return {**object_labels(name), REVISION_LABEL: revision}


def download_labels(name: str) -> dict[str, str]:
    """Labels of the pods that fetch the model."""
    return {MANAGED_BY_LABEL: MANAGED_BY, COMPONENT_LABEL: DOWNLOAD_COMPONENT, DOWNLOAD_LABEL: name}


def pod_selector(name: str) -> dict[str, str]:
    """Matches the pods of all revisions."""
    return {MANAGED_BY_LABEL: MANAGED_BY, NAME_LABEL: name}


def selector_text(name: str) -> str:
    """`pod_selector` as the scale subresource wants it."""
    return ",".join(f"{key}={value}" for key, value in sorted(pod_selector(name).items()))


def deployment_name(name: str, revision: str) -> str:
    return f"{name}-{revision}"


def fingerprint(value: Any) -> str:
    """Ten hex digits that change whenever the JSON value does."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]
