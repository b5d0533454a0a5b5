"""The adapter's own CA and serving certificate: made, judged and renewed here, kept elsewhere.

The API server must be able to verify us without cert-manager, so the operator signs for itself. A renewed CA joins the
old one in `ca_bundle_pem`, because replicas and the APIServices change over at different moments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_VALID_DAYS = 3650
SERVING_VALID_DAYS = 90
RENEW_AT = 2 / 3
"""Share of its life after which a certificate is renewed: 30 days remain for an operator that was down."""
BACKDATED = timedelta(hours=1)
"""For API servers whose clocks run behind ours."""
MAX_BUNDLED_CAS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingCertificate:
    """PEM texts that belong together; the entries of the Secret."""

    ca_bundle_pem: bytes
    """CAs that callers should trust, the one that signs now first."""
    ca_key_pem: bytes
    cert_pem: bytes
    key_pem: bytes

    def to_secret_data(self) -> dict[str, bytes]:
        return {
            "ca.crt": self.ca_bundle_pem,
            "ca.key": self.ca_key_pem,
            "tls.crt": self.cert_pem,
            "tls.key": self.key_pem,
        }


def from_secret_data(data: Mapping[str, bytes]) -> ServingCertificate | None:
    """None when an entry is absent, as in the empty Secret that the chart makes."""
    if not all(data.get(key) for key in ("ca.crt", "ca.key", "tls.crt", "tls.key")):
        return None
    return ServingCertificate(
        ca_bundle_pem=data["ca.crt"], ca_key_pem=data["ca.key"], cert_pem=data["tls.crt"], key_pem=data["tls.key"]
    )


def renewed(current: ServingCertificate | None, dns_names: Sequence[str], now: float) -> ServingCertificate | None:
    """The certificate to change to, or None when the current one is good.

    A sound CA is kept and only the serving certificate is made anew. What cannot be read is replaced whole.
    """
    at = datetime.fromtimestamp(now, UTC)
    if current is None:
        return _issue_all(dns_names, at, older_cas=b"")
    try:
        authority, ca_key = _signing_pair(current)
        cert = x509.load_pem_x509_certificate(current.cert_pem)
        key = serialization.load_pem_private_key(current.key_pem, password=None)
    except (ValueError, TypeError, IndexError):
        return _issue_all(dns_names, at, older_cas=b"")
    if _is_due(authority, at):
        return _issue_all(dns_names, at, older_cas=current.ca_bundle_pem)
    if _is_due(cert, at) or not _is_ours(cert, authority) or _names_of(cert) != set(dns_names):
        return _issue(authority, ca_key, current.ca_bundle_pem, dns_names, at)
    if key.public_key() != cert.public_key():
        return _issue(authority, ca_key, current.ca_bundle_pem, dns_names, at)
    return None


def service_dns_names(service: str, namespace: str) -> list[str]:
    """The names by which the API server's aggregator and people reach the adapter's Service."""
    return [f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local", f"{service}.{namespace}"]


def _issue_all(dns_names: Sequence[str], at: datetime, *, older_cas: bytes) -> ServingCertificate:
    key = ec.generate_private_key(ec.SECP256R1())
    # The serial in the name keeps two generations apart, for verifiers that look a CA up by its name.
    serial = x509.random_serial_number()
    name = _name(f"octavo-metrics-adapter-ca-{serial:x}"[:64])
    authority = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(at - BACKDATED)
        .not_valid_after(at + timedelta(days=CA_VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _issue(authority, key, authority.public_bytes(serialization.Encoding.PEM) + older_cas, dns_names, at)


def _issue(
    authority: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    ca_bundle_pem: bytes,
    dns_names: Sequence[str],
    at: datetime,
) -> ServingCertificate:
    key = ec.generate_private_key(ec.SECP256R1())
    cert = (
        x509.CertificateBuilder()
        .subject_name(_name("octavo-metrics-adapter"))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - BACKDATED)
        .not_valid_after(at + timedelta(days=SERVING_VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in dns_names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(key_cert_sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return ServingCertificate(
        ca_bundle_pem=_living(ca_bundle_pem, at),
        ca_key_pem=_private_pem(ca_key),
        cert_pem=cert.public_bytes(serialization.Encoding.PEM),
        key_pem=_private_pem(key),
    )


def _signing_pair(current: ServingCertificate) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The first CA of the bundle and its key.

    Raises:
        ValueError: they cannot be read or do not belong together.
    """
    authority = x509.load_pem_x509_certificates(current.ca_bundle_pem)[0]
    key = serialization.load_pem_private_key(current.ca_key_pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != authority.public_key():
        raise ValueError("the CA's key does not belong to its certificate")
    return authority, key


def _living(bundle_pem: bytes, at: datetime) -> bytes:
    """The newest CAs of the bundle that are still valid, in their order."""
    certificates = [cert for cert in x509.load_pem_x509_certificates(bundle_pem) if cert.not_valid_after_utc > at]
    return b"".join(cert.public_bytes(serialization.Encoding.PEM) for cert in certificates[:MAX_BUNDLED_CAS])


def _is_due(certificate: x509.Certificate, at: datetime) -> bool:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return at < begins or at >= begins + RENEW_AT * (ends - begins)


def _is_ours(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _names_of(certificate: x509.Certificate) -> set[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return set()
    return set(extension.value.get_values_for_type(x509.DNSName))


def _key_usage(*, key_cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
