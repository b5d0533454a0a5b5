"""Whom to believe when a request says "I come for user X": only the API server's front proxy.

The API server authenticates a caller, then calls us with its own client certificate and the caller's name in headers.
Anyone else may send such headers too, so they count only beside a client certificate that (1) a CA of the ConfigMap
kube-system/extension-apiserver-authentication issued and (2) bears an allowed common name. TLS checks the first when a
connection opens; it is checked again for each request, so that a CA that was withdrawn loses open connections too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID
from multidict import MultiMapping

from octavo_operator.metrics_adapter.kube_access import UserInfo


class AuthenticationConfigError(Exception):
    """The ConfigMap cannot be understood; the message names the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontProxyConfig:
    """The `requestheader-*` part of the ConfigMap."""

    client_ca_pem: str
    authorities: tuple[x509.Certificate, ...]
    allowed_names: frozenset[str]
    """Common names that may speak for others; empty allows every certificate of the CA, as in Kubernetes."""
    username_headers: tuple[str, ...]
    uid_headers: tuple[str, ...]
    group_headers: tuple[str, ...]
    extra_prefixes: tuple[str, ...]

    def trusts(self, certificate_der: bytes, now: float) -> bool:
        """Whether the holder of this client certificate may speak for others."""
        certificate = x509.load_der_x509_certificate(certificate_der)
        if not _is_valid_at(certificate, now):
            return False
        if self.allowed_names and not self.allowed_names & set(_common_names(certificate)):
            return False
        return any(_is_valid_at(authority, now) and _issued(authority, certificate) for authority in self.authorities)

    def user(self, headers: MultiMapping[str]) -> UserInfo | None:
        """The user that a trusted front proxy names; None when it names nobody."""
        name = _first(headers, self.username_headers)
        if not name:
            return None
        groups = tuple(value for header in self.group_headers for value in headers.getall(header, []) if value)
        return UserInfo(
            name=name, uid=_first(headers, self.uid_headers), groups=groups, extra=_extra(headers, self.extra_prefixes)
        )


def parse_authentication_config(data: Mapping[str, str] | None) -> FrontProxyConfig | None:
    """The ConfigMap's data as a value; None when this cluster runs without a front proxy.

    Raises:
        AuthenticationConfigError: a key of it is malformed.
    """
    pem = (data or {}).get("requestheader-client-ca-file", "").strip()
    if data is None or not pem:
        return None
    try:
        authorities = tuple(x509.load_pem_x509_certificates(pem.encode()))
    except ValueError as error:
        raise AuthenticationConfigError("requestheader-client-ca-file holds no PEM certificate") from error
    return FrontProxyConfig(
        client_ca_pem=pem,
        authorities=authorities,
        allowed_names=frozenset(_names(data, "requestheader-allowed-names", "[]")),
        username_headers=_names(data, "requestheader-username-headers", '["X-Remote-User"]'),
        uid_headers=_names(data, "requestheader-uid-headers", '["X-Remote-Uid"]'),
        group_headers=_names(data, "requestheader-group-headers", '["X-Remote-Group"]'),
        extra_prefixes=_names(data, "requestheader-extra-headers-prefix", '["X-Remote-Extra-"]'),
    )


def _names(data: Mapping[str, str], key: str, default: str) -> tuple[str, ...]:
    try:
        names = json.loads(data.get(key) or default)
    except ValueError as error:
        raise AuthenticationConfigError(f"{key} is no JSON list") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise AuthenticationConfigError(f"{key} is no JSON list of names")
    return tuple(name.strip() for name in names)


def _first(headers: MultiMapping[str], names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := headers.get(name, ""))), "")


def _extra(headers: MultiMapping[str], prefixes: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """`X-Remote-Extra-Scopes%2fA: v` is the extra key `scopes/a`."""
    extra: dict[str, tuple[str, ...]] = {}
    for prefix in prefixes:
        for header, value in headers.items():
            if header.lower().startswith(prefix.lower()):
                key = unquote(header[len(prefix) :].lower())
                extra[key] = (*extra.get(key, ()), value)
    return extra


def _common_names(certificate: x509.Certificate) -> list[str]:
    return [str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]


def _is_valid_at(certificate: x509.Certificate, now: float) -> bool:
    at = datetime.fromtimestamp(now, UTC)
    return certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc


def _issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Signed by it directly; an intermediate CA belongs into the bundle itself."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
