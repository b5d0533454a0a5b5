"""The adapter's own CA and certificate through ten years, in virtual time; judged by OpenSSL's own verifier."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from octavo_operator.metrics_adapter.certificates import (
    CA_VALID_DAYS,
    SERVING_VALID_DAYS,
    ServingCertificate,
    from_secret_data,
    renewed,
    service_dns_names,
)
from octavo_testing.adapter import NOW

NAMES = service_dns_names("octavo-metrics-adapter", "sys")
DAY = 86_400.0


def bundle(certificate: ServingCertificate) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(certificate.ca_bundle_pem)


def verify(certificate: ServingCertificate, trusted: ServingCertificate, now: float) -> None:
    """As a strict client with the given bundle does."""
    verifier = (
        PolicyBuilder()
        .store(Store(bundle(trusted)))
        .time(datetime.fromtimestamp(now, UTC))
        .build_server_verifier(x509.DNSName("octavo-metrics-adapter.sys.svc"))
    )
    verifier.verify(x509.load_pem_x509_certificate(certificate.cert_pem), [])


@pytest.fixture(scope="module")
def first() -> ServingCertificate:
    certificate = renewed(None, NAMES, NOW)
    assert certificate is not None
    return certificate


def test_the_first_certificate_verifies_under_the_services_name(first):
    verify(first, first, NOW)


def test_the_service_has_the_name_that_the_aggregator_dials():
    assert NAMES[0] == "octavo-metrics-adapter.sys.svc"


def test_a_good_certificate_is_left_alone(first):
    assert renewed(first, NAMES, NOW) is None
    assert renewed(first, NAMES, NOW + 59 * DAY) is None


def test_after_two_thirds_the_serving_certificate_is_renewed_by_the_same_ca(first):
    later = NOW + 61 * DAY

    second = renewed(first, NAMES, later)

    assert second is not None
    assert second.ca_bundle_pem == first.ca_bundle_pem
    assert second.cert_pem != first.cert_pem
    verify(second, first, NOW + (SERVING_VALID_DAYS + 30) * DAY)
    with pytest.raises(VerificationError):
        verify(first, first, NOW + (SERVING_VALID_DAYS + 30) * DAY)


def test_a_renewed_ca_joins_the_old_one_so_that_both_generations_verify(first):
    due = NOW + CA_VALID_DAYS * DAY * 2 / 3
    later = due + 10 * DAY
    old = renewed(first, NAMES, due - 10 * DAY)
    assert old is not None
    assert len(bundle(old)) == 1

    new = renewed(old, NAMES, later)

    assert new is not None
    assert len(bundle(new)) == 2
    assert bundle(new)[1] == bundle(old)[0]
    verify(new, new, later)
    verify(old, new, later)
    with pytest.raises(VerificationError):
        verify(new, old, later)


def test_an_expired_ca_leaves_the_bundle(first):
    end = NOW + (CA_VALID_DAYS + 1) * DAY

    new = renewed(first, NAMES, end)

    assert new is not None
    assert len(bundle(new)) == 1
    assert bundle(new) != bundle(first)
    verify(new, new, end)


def test_other_names_need_another_certificate(first):
    moved = renewed(first, service_dns_names("octavo-metrics-adapter", "elsewhere"), NOW)

    assert moved is not None
    assert moved.ca_bundle_pem == first.ca_bundle_pem
    with pytest.raises(VerificationError):
        verify(moved, first, NOW)


def test_a_clock_that_ran_ahead_is_mended():
    """A certificate from the future would be refused by every API server."""
    ahead = renewed(None, NAMES, NOW + 10 * DAY)

    mended = renewed(ahead, NAMES, NOW)

    assert mended is not None
    verify(mended, mended, NOW)


@pytest.mark.parametrize("entry", ["ca_bundle_pem", "ca_key_pem", "cert_pem", "key_pem"])
def test_what_cannot_be_read_is_replaced(first, entry):
    mended = renewed(replace(first, **{entry: b"-----BEGIN NONSENSE-----"}), NAMES, NOW)

    assert mended is not None
    verify(mended, mended, NOW)


@pytest.mark.parametrize(
    "entries", [("key_pem",), ("ca_key_pem",), ("cert_pem", "key_pem"), ("ca_bundle_pem", "ca_key_pem")]
)
def test_parts_of_two_generations_are_never_served_together(first, entries):
    """Somebody pasted half of another Secret."""
    other = renewed(None, NAMES, NOW)
    mixed = replace(first, **{entry: getattr(other, entry) for entry in entries})

    mended = renewed(mixed, NAMES, NOW)

    assert mended is not None
    verify(mended, mended, NOW)


def test_the_secret_holds_it_whole(first):
    assert from_secret_data(first.to_secret_data()) == first
    assert set(first.to_secret_data()) == {"ca.crt", "ca.key", "tls.crt", "tls.key"}


@pytest.mark.parametrize("absent", ["ca.crt", "ca.key", "tls.crt", "tls.key"])
def test_a_secret_that_lacks_an_entry_holds_none(first, absent):
    data = first.to_secret_data()

    assert from_secret_data({**data, absent: b""}) is None
    assert from_secret_data({key: data[key] for key in data if key != absent}) is None


def test_keys_are_not_readable_as_certificates_and_days_are_as_said(first):
    certificate = x509.load_pem_x509_certificate(first.cert_pem)

    assert certificate.not_valid_after_utc == datetime.fromtimestamp(NOW, UTC) + timedelta(days=SERVING_VALID_DAYS)
    assert b"PRIVATE" not in first.cert_pem + first.ca_bundle_pem
