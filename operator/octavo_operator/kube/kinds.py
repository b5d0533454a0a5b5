"""The kinds that the operator reads or writes, and their paths."""

from __future__ import annotations

from dataclasses import dataclass

from octavo_operator.api.types import GROUP, KIND, PLURAL, VERSION
from octavo_operator.desired import names


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of namespaced object; `selector` limits what is listed and watched."""

    name: str
    group: str
    version: str
    plural: str
    selector: str = names.ALL_OBJECTS_SELECTOR

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """URL path of one object, or of the collection where `name` is empty; all namespaces where that is empty."""
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{namespace}" if namespace else ""
        tail = "".join(f"/{part}" for part in (name, subresource) if part)
        return f"{root}{scope}/{self.plural}{tail}"


MODEL_DEPLOYMENT = Kind(name=KIND, group=GROUP, version=VERSION, plural=PLURAL, selector="")
DEPLOYMENT = Kind(name="Deployment", group="apps", version="v1", plural="deployments")
CONTROLLER_REVISION = Kind(name="ControllerRevision", group="apps", version="v1", plural="controllerrevisions")
SERVICE = Kind(name="Service", group="", version="v1", plural="services")
SERVICE_ACCOUNT = Kind(name="ServiceAccount", group="", version="v1", plural="serviceaccounts")
PDB = Kind(name="PodDisruptionBudget", group="policy", version="v1", plural="poddisruptionbudgets")
HPA = Kind(name="HorizontalPodAutoscaler", group="autoscaling", version="v2", plural="horizontalpodautoscalers")
SCALED_OBJECT = Kind(name="ScaledObject", group="keda.sh", version="v1alpha1", plural="scaledobjects")
PVC = Kind(name="PersistentVolumeClaim", group="", version="v1", plural="persistentvolumeclaims")
JOB = Kind(name="Job", group="batch", version="v1", plural="jobs")
NETWORK_POLICY = Kind(name="NetworkPolicy", group="networking.k8s.io", version="v1", plural="networkpolicies")
POD = Kind(name="Pod", group="", version="v1", plural="pods", selector=names.ALL_PODS_SELECTOR)
EVENT = Kind(name="Event", group="", version="v1", plural="events", selector="")
LEASE = Kind(name="Lease", group="coordination.k8s.io", version="v1", plural="leases", selector="")

OWNED = (DEPLOYMENT, CONTROLLER_REVISION, SERVICE, SERVICE_ACCOUNT, PVC, JOB, PDB, HPA, NETWORK_POLICY)
NAMED_BY_HASH = (DEPLOYMENT, CONTROLLER_REVISION, PVC, JOB)
"""Nobody else has such a name, so that it need not be asked for."""
WATCHED = (MODEL_DEPLOYMENT, *OWNED, POD)
LISTED = (SCALED_OBJECT,)
"""Kinds of others that may come and go with their owner's installation: no watch would bear that."""
BY_NAME = {kind.name: kind for kind in (*WATCHED, *LISTED)}


def resource_of(path: str) -> str:
    """Plural of what a URL path is about, with its subresource; empty where it is about the API itself."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    if parts[:1] == ["namespaces"] and len(parts) > 2:
        parts = parts[2:]
    return "/".join((*parts[:1], *parts[2:]))
