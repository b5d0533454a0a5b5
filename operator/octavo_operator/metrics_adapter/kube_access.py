"""What the adapter needs of the Kubernetes API, as Protocols: `octavo_operator.kube` implements them, tests fake them.

Each method raises `KubeAccessError` (never another exception) when the API server cannot be reached or refuses, and
must come back within 5 s. Values are plain: no object of the kubernetes package crosses this line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class KubeAccessError(Exception):
    """The API server did not answer, or answered with an error; the message says which call and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserInfo:
    """Who asks, as `authentication.k8s.io/v1 UserInfo`."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceAccess:
    """`spec.resourceAttributes` of a SubjectAccessReview."""

    verb: str
    group: str
    version: str
    namespace: str
    resource: str
    subresource: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PathAccess:
    """`spec.nonResourceAttributes` of a SubjectAccessReview."""

    verb: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessDecision:
    """`status` of a SubjectAccessReview."""

    allowed: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSecret:
    """A Secret's data (decoded from base64) and the version to write it back with."""

    data: Mapping[str, bytes]
    resource_version: str


class TokenReviewer(Protocol):
    """POST authentication.k8s.io/v1 tokenreviews."""

    async def review_token(self, token: str) -> UserInfo | None:
        """`status.user` when `status.authenticated`, else None. `spec.audiences` stays unset."""


class AccessReviewer(Protocol):
    """POST authorization.k8s.io/v1 subjectaccessreviews."""

    async def review_access(self, user: UserInfo, access: ResourceAccess | PathAccess) -> AccessDecision:
        """`allowed` is `status.allowed`; `reason` is `status.reason` or `status.evaluationError`."""


class AuthenticationConfig(Protocol):
    """GET configmaps/extension-apiserver-authentication in kube-system."""

    async def read_authentication_config(self) -> Mapping[str, str] | None:
        """The ConfigMap's `data`; None when there is no such ConfigMap."""


class CertificateSecret(Protocol):
    """GET and PUT of one Secret in the operator's own namespace. The chart creates it empty, and Opaque."""

    async def read_secret(self, namespace: str, name: str) -> StoredSecret | None:
        """None when it does not exist."""

    async def replace_secret(self, namespace: str, name: str, secret: StoredSecret) -> bool:
        """Write `data` (all of it) at `resource_version`; False on 409, when another replica was faster."""


class ApiServices(Protocol):
    """APIService objects of apiregistration.k8s.io/v1, as plain JSON documents."""

    async def read_api_service(self, name: str) -> dict[str, Any] | None:
        """The live document; None on 404."""

    async def apply_api_service(self, body: dict[str, Any]) -> None:
        """Server-side apply with the operator's field manager and force."""

    async def read_cluster_role_uid(self, name: str) -> str | None:
        """`metadata.uid` of the ClusterRole that owns the APIServices; None on 404."""


class AdapterKube(TokenReviewer, AccessReviewer, AuthenticationConfig, CertificateSecret, ApiServices, Protocol):
    """Everything together: what `run_metrics_adapter` is given."""
