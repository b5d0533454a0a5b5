"""A real kube-apiserver with etcd on loopback, for tests: no kubelet, no controllers, ready in about four seconds.

Binaries: `$OCTAVO_ENVTEST_BIN` (a folder), else the newest ~/.cache/octavo/tools/kubernetes-*/ ; etcd also from PATH.
Never leaves a process behind: `stop` kills both and removes the folder.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

ADMIN_TOKEN = "octavo-test-admin"
START_TIMEOUT_S = 60
CRD_PATH = Path(__file__).parents[2] / "crds" / "modeldeployments.octavo.dev.yaml"


class BinariesMissingError(Exception):
    """kube-apiserver or etcd is not on this machine."""


def find_binaries() -> tuple[Path, Path]:
    """(kube-apiserver, etcd); raises BinariesMissingError that says where it looked."""
    folders = [Path(os.environ["OCTAVO_ENVTEST_BIN"])] if os.environ.get("OCTAVO_ENVTEST_BIN") else []
    tools = Path(os.environ.get("OCTAVO_CACHE", Path.home() / ".cache" / "octavo")) / "tools"
    for found in sorted(tools.glob("kubernetes-*"), reverse=True):
        folders += [found, found / "bin"]
    apiserver = next((folder / "kube-apiserver" for folder in folders if (folder / "kube-apiserver").exists()), None)
    etcd = next((folder / "etcd" for folder in folders if (folder / "etcd").exists()), None) or shutil.which("etcd")
    if apiserver is None or etcd is None:
        raise BinariesMissingError(
            f"{'kube-apiserver' if apiserver is None else 'etcd'} not found; set OCTAVO_ENVTEST_BIN to a folder that holds "
            f"kube-apiserver (looked in {[str(folder) for folder in folders]}) and install etcd"
        )
    return apiserver, Path(etcd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the API server said."""

    status: int
    body: dict[str, Any]

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))


class ApiServer:
    """A running API server and a plain HTTP client of it, as cluster administrator."""

    def __init__(self, *, folder: Path, port: int, processes: list[subprocess.Popen[bytes]]) -> None:
        """`processes` are etcd and kube-apiserver."""
        self.folder = folder
        self.url = f"https://127.0.0.1:{port}"
        self.ca_file = folder / "ca.crt"
        self.kubeconfig = folder / "kubeconfig"
        self.audit_log: Path | None = None
        """Where it notes what service accounts do, if it does."""
        self._processes = processes
        self._context = ssl.create_default_context(cafile=str(self.ca_file))

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        token: str = ADMIN_TOKEN,
    ) -> Answer:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": content_type}
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, context=self._context, timeout=30) as response:
                return Answer(status=response.status, body=_parse(response.read()))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(status=error.code, body=_parse(error.read()))

    def apply_crd(self) -> None:
        """Installs the ModelDeployment CRD and waits until it is served."""
        crd = yaml.safe_load(CRD_PATH.read_text())
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        answer = self.request("POST", path, crd)
        assert answer.status in (201, 409), answer.message
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.request("GET", "/apis/octavo.dev/v1alpha1/modeldeployments").status != 200:
            conditions = (
                self.request("GET", f"{path}/{crd['metadata']['name']}").body.get("status", {}).get("conditions")
            )
            assert time.monotonic() < deadline, conditions
            time.sleep(0.05)

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Nobody listens while inside; afterwards it serves what it served before."""
        process = self._processes.pop()
        process.kill()
        process.wait()
        yield
        command = [str(argument) for argument in process.args]  # type: ignore[union-attr]  # always a list here
        self._processes.append(_start(self.folder, "apiserver", command))
        _await_ready(self, self._processes)


@contextlib.contextmanager
def running_apiserver(*flags: str) -> Iterator[ApiServer]:
    """Starts etcd and kube-apiserver (with more flags) on free loopback ports; kills both at the end, come what may."""
    apiserver_binary, etcd_binary = find_binaries()
    folder = Path(tempfile.mkdtemp(prefix="octavo-apiserver-"))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        _write_credentials(folder)
        etcd_port, peer_port, port = free_ports(3)
        processes.append(_start(folder, "etcd", _etcd_command(etcd_binary, folder, etcd_port, peer_port)))
        command = _apiserver_command(apiserver_binary, folder, etcd_port, port)
        processes.append(_start(folder, "apiserver", [*command, *flags]))
        server = ApiServer(folder=folder, port=port, processes=processes)
        _write_kubeconfig(server)
        _await_ready(server, processes)
        yield server
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def skipping_without_binaries() -> Iterator[None]:
    """Where what e2e's tools build is not on this machine, the test or fixture inside is skipped and says so."""
    try:
        yield
    except BinariesMissingError as missing:
        pytest.skip(str(missing))


@contextlib.contextmanager
def apiserver_with_crd() -> Iterator[ApiServer]:
    """What most tests want of a fixture: a real API server that serves ModelDeployments, else a skip."""
    with skipping_without_binaries(), running_apiserver() as server:
        server.apply_crd()
        yield server


def _etcd_command(binary: Path, folder: Path, port: int, peer_port: int) -> list[str]:
    client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    return [
        str(binary),
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
    ]


def _apiserver_command(binary: Path, folder: Path, etcd_port: int, port: int) -> list[str]:
    return [
        str(binary),
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--tls-cert-file={folder / 'server.crt'}",
        f"--tls-private-key-file={folder / 'server.key'}",
        f"--cert-dir={folder}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={folder / 'sa.key'}",
        f"--service-account-signing-key-file={folder / 'sa.key'}",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--authorization-mode=RBAC",
        "--disable-admission-plugins=ServiceAccount",
        "--watch-cache=true",
    ]


def _start(folder: Path, name: str, command: list[str]) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder)


def _await_ready(server: ApiServer, processes: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError):
            if server.request("GET", "/readyz").status == 200:
                return
        dead = [process.args for process in processes if process.poll() is not None]
        if dead or time.monotonic() > deadline:
            logs = {log.name: log.read_text()[-2000:] for log in server.folder.glob("*.log")}
            raise RuntimeError(f"the API server did not start; ended: {dead}; logs: {logs}")
        time.sleep(0.05)


def _write_credentials(folder: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "octavo-test")])
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(names, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "server.crt").write_bytes(pem)
    (folder / "ca.crt").write_bytes(pem)
    (folder / "server.key").write_bytes(_private_pem(key))
    (folder / "sa.key").write_bytes(_private_pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)))
    (folder / "tokens.csv").write_text(f'{ADMIN_TOKEN},admin,1,"system:masters"\n')


def _private_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _write_kubeconfig(server: ApiServer) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server.url, "certificate-authority": str(server.ca_file)}}],
        "users": [{"name": "admin", "user": {"token": ADMIN_TOKEN}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin", "namespace": "default"}}],
        "current-context": "test",
    }
    server.kubeconfig.write_text(yaml.safe_dump(config))


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _parse(data: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(data)
    except ValueError:
        return {"message": data.decode(errors="replace")}
    return parsed if isinstance(parsed, dict) else {"items": parsed}
