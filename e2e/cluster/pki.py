"""Certificates and kubeconfigs of one cluster, made anew at each start.

Two authorities: one signs the cluster's own certificates, the other the front proxy's. One for both would let any
client certificate pass as the aggregation layer.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from e2e.cluster.network import Network

_LIFE = datetime.timedelta(days=365)
_ADMIN = "system:masters"

CLIENTS = {
    "admin": ("octavo-admin", _ADMIN),
    "controller-manager": ("system:kube-controller-manager", None),
    "scheduler": ("system:kube-scheduler", None),
    "kube-proxy": ("system:kube-proxy", None),
    "kubelet": ("system:node:node0", "system:nodes"),
}
"""Name of the kubeconfig → common name and organisation of its client certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def write_pki(folder: Path, network: Network) -> None:
    """Write every key, certificate and kubeconfig that the cluster's programs read into `folder`."""
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    cluster = _authority(folder, "ca", "octavo-e2e-ca")
    front_proxy = _authority(folder, "front-proxy-ca", "octavo-e2e-front-proxy-ca")
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    _issue(
        folder,
        "apiserver",
        cluster,
        common_name="kube-apiserver",
        hosts=[*names, "localhost", "127.0.0.1", network.kubernetes_ip, network.node_ip],
    )
    _issue(folder, "apiserver-kubelet-client", cluster, common_name="apiserver-kubelet-client", organisation=_ADMIN)
    _issue(folder, "kubelet-server", cluster, common_name="system:node:node0", hosts=["node0", network.node_ip])
    _issue(folder, "front-proxy-client", front_proxy, common_name="front-proxy-client")
    for name, (common_name, organisation) in CLIENTS.items():
        _issue(folder, name, cluster, common_name=common_name, organisation=organisation)
        _write_kubeconfig(folder, name, f"https://{network.node_ip}:6443")
    _write_service_account_keys(folder)


def _authority(folder: Path, name: str, common_name: str) -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(common_name, None)
    certificate = (
        _builder(subject, subject, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_pair(folder, name, certificate, key)
    return _Authority(certificate=certificate, key=key)


def _issue(
    folder: Path,
    name: str,
    authority: _Authority,
    *,
    common_name: str,
    organisation: str | None = None,
    hosts: Sequence[str] = (),
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        _builder(_name(common_name, organisation), authority.certificate.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
            critical=False,
        )
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_alternative(h) for h in hosts]), critical=False)
    _write_pair(folder, name, builder.sign(authority.key, hashes.SHA256()), key)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + _LIFE)
    )


def _name(common_name: str, organisation: str | None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organisation:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation))
    return x509.Name(attributes)


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write_pair(folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _write_key(folder / f"{name}.key", key)


def _write_service_account_keys(folder: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    _write_key(folder / "service-account.key", key)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "service-account.pub").write_bytes(public)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _write_kubeconfig(folder: Path, name: str, server: str) -> None:
    # Paths, not data: a person may copy the file only together with its folder, and the keys stay in one place.
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "octavo-e2e", "cluster": {"server": server, "certificate-authority": str(folder / "ca.crt")}}
        ],
        "users": [
            {
                "name": name,
                "user": {
                    "client-certificate": str(folder / f"{name}.crt"),
                    "client-key": str(folder / f"{name}.key"),
                },
            }
        ],
        "contexts": [{"name": "octavo-e2e", "context": {"cluster": "octavo-e2e", "user": name}}],
        "current-context": "octavo-e2e",
    }
    path = folder / f"{name}.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document))
