"""HTTPS at the public port: the official way in, a renewed certificate without a restart, a broken one without harm."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from octavo_gateway import certificate
from octavo_gateway.errors import BadCertificate
from octavo_gateway.metrics import Metrics
from octavo_testing.gateway import CHAT, a_gateway, a_model, an_upstream, streaming, until
from octavo_testing.tls_client import hurry


def write_pair(folder: Path, name: str, *, key_of_another: bool = False) -> None:
    """A self-signed certificate whose common name is `name`, for localhost and 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    kept = ec.generate_private_key(ec.SECP256R1()) if key_of_another else key
    folder.mkdir(exist_ok=True)
    (folder / "tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(
        kept.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


async def name_of(port: int, server_name: str | None) -> str:
    """The common name that a new connection is shown; `server_name` None tells the gateway none."""
    context = ssl._create_unverified_context()

    def shake() -> bytes:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=server_name) as connection,
        ):
            return connection.getpeercert(binary_form=True) or b""

    shown = x509.load_der_x509_certificate(await asyncio.to_thread(shake))
    return str(shown.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def reloads(bench: Any, outcome: str) -> float:
    return float(
        bench.gateway.metrics.registry.get_sample_value("octavo_gateway_tls_reloads_total", {"outcome": outcome}) or 0
    )


async def test_a_client_that_trusts_the_certificate_is_answered_and_plain_http_is_not(tmp_path: Path) -> None:
    write_pair(tmp_path / "tls", "first")
    trust = ssl.create_default_context(cafile=str(tmp_path / "tls" / "tls.crt"))
    async with (
        an_upstream() as upstream,
        a_gateway(a_model("m", upstream.replica()), tls_dir=str(tmp_path / "tls")) as bench,
    ):
        url = f"https://localhost:{bench.gateway.port}"
        async with bench.client.post(url + CHAT, json={"model": "m"}, ssl=trust) as answer:
            assert answer.status == 200
        with pytest.raises(aiohttp.ClientError):
            await bench.client.post(bench.url + CHAT, json={"model": "m"})
        assert (await bench.internal("/readyz"))[0] == 200


async def test_a_renewed_certificate_is_shown_to_new_connections_and_streams_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "LOOK_EVERY_S", 0.02)
    write_pair(tmp_path / "tls", "first")
    gate: asyncio.Queue[bytes | None] = asyncio.Queue()
    async with (
        an_upstream(streaming(gate)) as upstream,
        a_gateway(a_model("m", upstream.replica()), tls_dir=str(tmp_path / "tls")) as bench,
    ):
        port = bench.gateway.port
        assert {await name_of(port, "localhost"), await name_of(port, None)} == {"first"}
        url = f"https://localhost:{port}{CHAT}"
        stream = await bench.client.post(url, json={"model": "m", "stream": True}, ssl=False)

        write_pair(tmp_path / "tls", "second", key_of_another=True)
        await until(lambda: reloads(bench, "failed") >= 1)
        assert {await name_of(port, "localhost"), await name_of(port, None)} == {"first"}

        write_pair(tmp_path / "tls", "third")
        await until(lambda: reloads(bench, "ok") >= 1)
        assert {await name_of(port, "localhost"), await name_of(port, None)} == {"third"}

        await gate.put(b"data: late\n\n")
        await gate.put(None)
        assert await stream.content.read() == b"data: late\n\n"


@pytest.mark.parametrize("sent", [b"", b"POST /"])
async def test_what_comes_with_the_end_of_the_handshake_begins_the_head(sent: bytes, tmp_path: Path) -> None:
    write_pair(tmp_path / "tls", "first")
    trust = ssl.create_default_context(cafile=str(tmp_path / "tls" / "tls.crt"))
    async with a_gateway(a_model("m"), tls_dir=str(tmp_path / "tls"), header_timeout_s=0.3) as bench:
        answer = await asyncio.to_thread(hurry, bench.gateway.port, trust, sent, server_name="localhost")

        assert answer[:12] == (b"HTTP/1.1 408" if sent else b"")


def test_a_changed_pair_is_read_once_and_one_that_is_gone_harms_nobody(tmp_path: Path) -> None:
    def counts() -> list[float | None]:
        name = "octavo_gateway_tls_reloads_total"
        return [metrics.registry.get_sample_value(name, {"outcome": outcome}) for outcome in ("ok", "failed")]

    metrics, folder = Metrics(), tmp_path / "tls"
    write_pair(folder, "first")
    read = certificate.Certificate(folder, metrics)
    begun = counts()
    for key_of_another in (True, False):
        write_pair(folder, "next", key_of_another=key_of_another)
        read.look()
        read.look()
    changed = counts()
    (folder / "tls.key").unlink()
    read.look()

    assert begun in ([0.0, 0.0], [None, None])
    assert (changed, counts()) == ([1.0, 1.0], [1.0, 2.0])


@pytest.mark.parametrize("content", [None, b"no certificate"])
async def test_without_a_certificate_the_gateway_does_not_begin(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "tls.crt").write_bytes(content)
        (tmp_path / "tls.key").write_bytes(content)

    with pytest.raises(BadCertificate, match=r"tls\.crt and tls\.key"):
        async with a_gateway(tls_dir=str(tmp_path)):
            pass
