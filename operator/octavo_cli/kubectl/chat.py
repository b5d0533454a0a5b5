"""`kubectl octavo chat NAME [QUESTION]`: `octavo chat` through a port that kubectl forwards to the gateway."""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator

from rich.console import Console

from octavo_cli import chat
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
        return chat.start(chat.options_of(given, url=url, model=f"{namespace_of(model)}/{name_of(model)}"))


def gateway_service(cluster: Cluster) -> tuple[str, str, int]:
    """(namespace, name, port) of the public Service."""
    for service in release_objects(cluster, "/api/v1", "services", "gateway"):
        for port in service["spec"]["ports"]:
            if port.get("name") == "http":
                return namespace_of(service), name_of(service), int(port["port"])
    raise CliError(
        f"no Service of Octavo's gateway is found (looked everywhere, or in {SYSTEM_NAMESPACE} where only that may be "
        "listed); `kubectl octavo doctor` says more"
    )


@contextlib.contextmanager
def forwarded(cluster: Cluster, service: tuple[str, str, int]) -> Iterator[str]:
    """A local address that leads to the Service while the block runs."""
    namespace, name, port = service
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise CliError("kubectl is not on the PATH; it forwards the port to the gateway")
    command = [
        kubectl,
        *cluster.kubectl_flags,
        "port-forward",
        f"--namespace={namespace}",
        f"service/{name}",
        f":{port}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = _FORWARDING.match(process.stdout.readline())
        if found is None:
            process.terminate()
            raise CliError(f"kubectl port-forward: {process.communicate(timeout=10)[1].strip()}")
        yield f"http://127.0.0.1:{found[1]}"
    finally:
        process.terminate()
        process.communicate(timeout=10)
