"""The APIService objects that make the API server send `custom.metrics.k8s.io` to us.

They are the operator's at run time, not the chart's: only the operator knows the CA, and a template that asks whether
somebody else serves the group finds our own at the second upgrade. They are owned by a ClusterRole of the
release that exists only with the adapter, so that `helm uninstall` removes them, and an upgrade that turns the adapter
off; a dangling APIService would block the deletion of every namespace.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Literal

from octavo_operator.metrics_adapter.documents import GROUP, VERSIONS

MANAGED_BY = {"app.kubernetes.io/managed-by": "octavo", "app.kubernetes.io/component": "metrics-adapter"}
GROUP_PRIORITY = 100
VERSION_PRIORITIES = {"v1beta2": 200, "v1beta1": 100}

Ownership = Literal["absent", "ours", "foreign"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterService:
    """Where the adapter is reached and which ClusterRole owns what announces it."""

    name: str
    namespace: str
    port: int = 443
    cluster_role: str


def api_service_names() -> list[str]:
    return [f"{version}.{GROUP}" for version in VERSIONS]


def build_api_services(service: AdapterService, *, ca_bundle_pem: bytes, owner_uid: str) -> list[dict[str, Any]]:
    """One APIService for each version, ready for server-side apply."""
    owner = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "name": service.cluster_role,
        "uid": owner_uid,
    }
    return [
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {
                "name": f"{version}.{GROUP}",
                "labels": dict(MANAGED_BY),
                "ownerReferences": [dict(owner)],
            },
            "spec": {
                "group": GROUP,
                "version": version,
                "groupPriorityMinimum": GROUP_PRIORITY,
                "versionPriority": VERSION_PRIORITIES[version],
                "caBundle": base64.b64encode(ca_bundle_pem).decode(),
                "service": {"name": service.name, "namespace": service.namespace, "port": service.port},
            },
        }
        for version in VERSIONS
    ]


def ownership(live: dict[str, Any] | None, service: AdapterService) -> Ownership:
    """Whose a live APIService is: ours when it points at our Service, whoever wrote it."""
    if live is None:
        return "absent"
    target = (live.get("spec") or {}).get("service") or {}
    return "ours" if (target.get("name"), target.get("namespace")) == (service.name, service.namespace) else "foreign"


def differs(live: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    """Whether an apply would change anything; the API server's own additions do not count."""
    if live is None:
        return True
    live_spec, live_meta = live.get("spec") or {}, live.get("metadata") or {}
    labels = live_meta.get("labels") or {}
    return (
        any(live_spec.get(key) != value for key, value in wanted["spec"].items())
        or any(labels.get(key) != value for key, value in wanted["metadata"]["labels"].items())
        or [owner.get("uid") for owner in live_meta.get("ownerReferences") or []]
        != [owner["uid"] for owner in wanted["metadata"]["ownerReferences"]]
    )
