"""`kubectl octavo chat NAME [QUESTION]`: `octavo chat` through a port that kubectl forwards to the gateway."""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console

from octavo_cli import chat
from octavo_cli.child_process import end_with_parent
from octavo_cli.errors import CliError

from .cluster import Cluster
from .resources import SYSTEM_NAMESPACE, get_model, name_of, namespace_of, release_objects

_FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ->")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of the ModelDeployment")
    chat.add_arguments(parser)


def run(cluster: Cluster, given: argparse.Namespace, console: Console) -> int:
    model = get_model(cluster, given.name)
    service = gateway_service(cluster)
    with forwarded(cluster, service) as url:
        # The name that always routes, whoever else claims the served ones.
        name = f"{namespace_of(model)}/{name_of(model)}"
        # A certificate is for the name that clients outside use; this tunnel ends in the gateway's own pod.
        return chat.start(chat.options_of(given, url=url, model=name, verifies_tls=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayService:
    """The public Service."""

    namespace: str
    name: str
    port: int
    scheme: str


def gateway_service(cluster: Cluster) -> GatewayService:
    for service in release_objects(cluster, "/api/v1", "services", "gateway"):
        for port in service["spec"]["ports"]:
            if port.get("name") == "http":
                return GatewayService(
                    namespace=namespace_of(service),
                    name=name_of(service),
                    port=int(port["port"]),
                    scheme="https" if port.get("appProtocol") == "https" else "http",
                )
    raise CliError(
        f"no Service of Octavo's gateway is found (looked everywhere, or in {SYSTEM_NAMESPACE} where only that may be "
        "listed); `kubectl octavo doctor` says more"
    )


@contextlib.contextmanager
def forwarded(cluster: Cluster, service: GatewayService) -> Iterator[str]:
    """A local address that leads to the Service while the block runs."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise CliError("kubectl is not on the PATH; it forwards the port to the gateway")
    command = [
        kubectl,
        *cluster.kubectl_flags,
        "port-forward",
        f"--namespace={service.namespace}",
        f"service/{service.name}",
        f":{service.port}",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A session of its own: Ctrl-C ends an answer, and not the way to the next one.
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    try:
        assert process.stdout is not None
        found = _FORWARDING.match(process.stdout.readline())
        if found is None:
            process.terminate()
            raise CliError(f"kubectl port-forward: {process.communicate(timeout=10)[1].strip()}")
        yield f"{service.scheme}://127.0.0.1:{found[1]}"
    finally:
        process.terminate()
        process.communicate(timeout=10)
