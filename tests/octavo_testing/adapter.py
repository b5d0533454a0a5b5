"""Builders for the custom metrics adapter and autoscaling: pods, loads, certificates, and a Kubernetes to ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from octavo_operator.metrics_adapter.kube_access import (
    AccessDecision,
    KubeAccessError,
    PathAccess,
    ResourceAccess,
    StoredSecret,
    UserInfo,
)
from octavo_operator.metrics_adapter.store import MODEL_LABEL, PodLoad, ServerPod

NOW = 1_800_000_000.0
"""Some instant in 2027: virtual tests start here."""


class VirtualClock:
    """A clock that moves only when told."""

    def __init__(self, at: float = NOW) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def a_pod(
    name: str = "qwen-1",
    *,
    model: str = "qwen",
    namespace: str = "default",
    ip: str = "127.0.0.1",
    ready: bool = True,
    terminating: bool = False,
    labels: Mapping[str, str] | None = None,
) -> ServerPod:
    return ServerPod(
        namespace=namespace,
        name=name,
        uid=f"uid-{namespace}-{name}",
        ip=ip,
        labels={MODEL_LABEL: model, **(labels or {})},
        ready=ready,
        terminating=terminating,
    )


def a_load(
    pressure: float = 0.5, *, running: int = 0, waiting: int = 0, requests_total: int = 0, at: float = NOW
) -> PodLoad:
    return PodLoad(
        pressure=pressure,
        running=running,
        waiting=waiting,
        draining=False,
        requests_total=requests_total,
        kv_usage=0.0,
        at=at,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A certificate and its private key."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def cert_pem(self) -> bytes:
        return self.cert.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def der(self) -> bytes:
        return self.cert.public_bytes(serialization.Encoding.DER)

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        paths = folder / f"{name}.crt", folder / f"{name}.key"
        paths[0].write_bytes(self.cert_pem)
        paths[1].write_bytes(self.key_pem)
        return paths


def a_ca(name: str = "front-proxy-ca", *, begins: float | None = None, days: float = 10) -> KeyPair:
    return _certificate(name, issuer=None, begins=begins, days=days)


def a_client(name: str, issuer: KeyPair, *, begins: float | None = None, days: float = 10) -> KeyPair:
    return _certificate(name, issuer=issuer, begins=begins, days=days)


def _certificate(name: str, *, issuer: KeyPair | None, begins: float | None, days: float) -> KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = datetime.now(UTC) - timedelta(hours=1) if begins is None else datetime.fromtimestamp(begins, UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.cert.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    return KeyPair(cert=builder.sign(issuer.key if issuer else key, hashes.SHA256()), key=key)


def authentication_config(ca: KeyPair, *, allowed_names: str = '["front-proxy-client"]') -> dict[str, str]:
    """The data of kube-system/extension-apiserver-authentication as an API server writes it."""
    return {
        "client-ca-file": "-----BEGIN CERTIFICATE-----",
        "requestheader-allowed-names": allowed_names,
        "requestheader-client-ca-file": ca.cert_pem.decode(),
        "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
        "requestheader-group-headers": '["X-Remote-Group"]',
        "requestheader-uid-headers": '["X-Remote-Uid"]',
        "requestheader-username-headers": '["X-Remote-User"]',
    }


Access = ResourceAccess | PathAccess


@dataclass(slots=True)
class FakeKube:
    """The API server as the adapter sees it: rights, tokens and objects in memory, every question recorded."""

    users_by_token: dict[str, UserInfo] = field(default_factory=dict)
    allowed_users: set[str] = field(default_factory=set)
    allowed_groups: set[str] = field(default_factory=set)
    config: dict[str, str] | None = None
    secrets: dict[tuple[str, str], StoredSecret] = field(default_factory=dict)
    api_services: dict[str, dict[str, Any]] = field(default_factory=dict)
    cluster_roles: dict[str, str] = field(default_factory=dict)
    is_down: bool = False
    token_reviews: list[str] = field(default_factory=list)
    access_reviews: list[tuple[UserInfo, Access]] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    conflicts_to_come: int = 0

    async def review_token(self, token: str) -> UserInfo | None:
        self._reach("tokenreviews")
        self.token_reviews.append(token)
        return self.users_by_token.get(token)

    async def review_access(self, user: UserInfo, access: Access) -> AccessDecision:
        self._reach("subjectaccessreviews")
        self.access_reviews.append((user, access))
        allowed = user.name in self.allowed_users or bool(self.allowed_groups & set(user.groups))
        return AccessDecision(allowed=allowed, reason="" if allowed else "no RBAC policy matched")

    async def read_authentication_config(self) -> Mapping[str, str] | None:
        self._reach("configmaps")
        return self.config

    async def read_secret(self, namespace: str, name: str) -> StoredSecret | None:
        self._reach("secrets")
        return self.secrets.get((namespace, name))

    async def replace_secret(self, namespace: str, name: str, secret: StoredSecret) -> bool:
        self._reach("secrets")
        if self.conflicts_to_come:
            self.conflicts_to_come -= 1
            return False
        if self.secrets[namespace, name].resource_version != secret.resource_version:
            return False
        version = str(int(secret.resource_version) + 1)
        self.secrets[namespace, name] = StoredSecret(data=secret.data, resource_version=version)
        self.writes.append(f"secret {namespace}/{name}")
        return True

    async def read_api_service(self, name: str) -> dict[str, Any] | None:
        self._reach("apiservices")
        return self.api_services.get(name)

    async def apply_api_service(self, body: dict[str, Any]) -> None:
        self._reach("apiservices")
        self.api_services[body["metadata"]["name"]] = body
        self.writes.append(f"apiservice {body['metadata']['name']}")

    async def read_cluster_role_uid(self, name: str) -> str | None:
        self._reach("clusterroles")
        return self.cluster_roles.get(name)

    def _reach(self, what: str) -> None:
        if self.is_down:
            raise KubeAccessError(f"{what}: connection refused")
