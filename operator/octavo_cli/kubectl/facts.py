"""What `doctor` reads of a cluster, and what it makes of it.

| level | means |
|---|---|
| ok | as it should be |
| warn | works, but something that people expect will not |
| fail | Octavo or its models cannot work; the exit status is 1 |
| skip | could not be looked at, with the reason |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .cluster import Json

Level = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    level: Level
    check: str
    message: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """One thing that somebody must be allowed to do."""

    who: str
    group: str
    resource: str
    verb: str
    namespace: str = ""
    subresource: str = ""

    @property
    def text(self) -> str:
        resource = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        where = f"in {self.namespace}" if self.namespace else "in all namespaces"
        return f"{self.verb} {resource}{'.' + self.group if self.group else ''} {where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was read; None is what could not be."""

    namespace: str
    version: Mapping[str, str]
    crd: Json | None
    is_served: bool
    """Whether the API server serves ModelDeployments, which everybody may ask."""
    operators: Sequence[Json]
    gateways: Sequence[Json]
    leases: Sequence[Json] | None
    nodes: Sequence[Json] | None
    pods: Sequence[Json] | None
    daemon_sets: Sequence[Json] | None
    metrics_service: Json | None
    metrics: Sequence[str] | None
    """Names that custom.metrics.k8s.io offers; None where nobody serves it."""
    quotas: Sequence[Json] | None
    models: Sequence[Json]
    sees_models: bool = True
    """Whether the person may list them."""
    serves_claims: bool = True
    """Whether the API server serves resource.k8s.io/v1."""
    claim_templates: Sequence[Json] | None = ()
    """ResourceClaimTemplates of the namespace."""
    serves_keda: bool = False
    """Whether the API server serves keda.sh/v1alpha1."""
    keda_operators: Sequence[Json] | None = ()
    """Deployments of KEDA's operator, wherever they are."""
    scaled_objects: Sequence[Json] | None = ()
    """Octavo's ScaledObjects of the namespace."""
    rights: Mapping[Right, bool | None] = field(default_factory=dict)
