"""Octavo on a cluster: the chart installed with the real helm, and the addresses that people and cases use."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml

from e2e.cluster.errors import ClusterError
from e2e.cluster.paths import CHART
from e2e.cluster.shell import run
from e2e.cluster.target import GATEWAY_NODE_PORT, METRICS_API, Target

RELEASE = "octavo"
NAMESPACE = "octavo-system"


@dataclass(frozen=True, slots=True, kw_only=True)
class Octavo:
    """The installed release."""

    target: Target
    gateway_url: str
    """Base URL without /v1, reachable from this machine."""

    @property
    def metrics_url(self) -> str:
        """Of the custom-metrics adapter, by way of the API server."""
        return f"{server_url(self.target)}/{METRICS_API}"

    def helm(self, *words: str, stdin: str | None = None, timeout_s: float = 180) -> str:
        return helm(self.target, *words, stdin=stdin, timeout_s=timeout_s)


def install(target: Target, values: Mapping[str, Any] | None = None) -> None:
    """Install or upgrade the chart and wait until its pods are ready."""
    document = yaml.safe_dump({**target.values, **(values or {})})
    flags = ["--install", f"--namespace={NAMESPACE}", "--create-namespace", "--values=-", "--wait", "--timeout=150s"]
    helm(target, "upgrade", RELEASE, str(CHART), *flags, stdin=document)


def uninstall(target: Target) -> None:
    """Remove the release and wait until its objects are gone."""
    helm(target, "uninstall", RELEASE, f"--namespace={NAMESPACE}", "--wait", "--timeout=120s")


def helm(target: Target, *words: str, stdin: str | None = None, timeout_s: float = 180) -> str:
    """Output of the real helm against the target."""
    return run([target.helm, f"--kubeconfig={target.kubeconfig}", *words], stdin=stdin, timeout_s=timeout_s)


def server_url(target: Target) -> str:
    """Of the API server."""
    return target.kubectl("config", "view", "--minify", "--output=jsonpath={.clusters[0].cluster.server}")


@contextmanager
def reach(target: Target) -> Iterator[Octavo]:
    """The installed release with its gateway reachable: by NodePort on our own cluster, else by a forwarded port."""
    if target.lab is not None:
        yield Octavo(target=target, gateway_url=f"http://{target.lab.network.node_ip}:{GATEWAY_NODE_PORT}")
        return
    port = _free_port()
    words = ["port-forward", f"--namespace={NAMESPACE}", f"service/{RELEASE}-gateway", f"{port}:8080"]
    forward = subprocess.Popen(target.kubectl.command(*words), stdout=subprocess.DEVNULL)
    try:
        _wait_listening(port, forward)
        yield Octavo(target=target, gateway_url=f"http://127.0.0.1:{port}")
    finally:
        forward.terminate()
        forward.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _wait_listening(port: int, forward: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while forward.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise ClusterError(f"kubectl port-forward to the gateway does not listen (status {forward.poll()})")
