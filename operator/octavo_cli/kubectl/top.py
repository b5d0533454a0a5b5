"""`kubectl octavo top [NAME]`: load and speed of each replica, read through the API server's proxy to its pod."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console

from octavo_cli import top_view
from octavo_cli.errors import CliError
from octavo_operator.desired import names
from octavo_operator.desired.engine_args import SERVER_PORT
from octavo_operator.diagnosis import diagnose_pod
from octavo_operator.observed import Pod

from .cluster import MAX_CONNECTIONS, Cluster, Json
from .resources import collection, get_model, items, name_of, namespace_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default="", help="of the ModelDeployment (default: all)")
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="of all namespaces")
    top_view.add_arguments(parser)


def run(cluster: Cluster, given: argparse.Namespace, console: Console) -> int:
    namespace = "" if given.all_namespaces else cluster.namespace
    if given.name and namespace:
        get_model(cluster, given.name)
    return top_view.show(top_view.TopView(lambda: look(cluster, namespace, given.name)), given, console)


def look(cluster: Cluster, namespace: str, name: str) -> Sequence[top_view.Replica]:
    """Every pod of the chosen models; what cannot be read says why."""
    selector = names.selector_text(name) if name else names.ALL_OBJECTS_SELECTOR
    pods = items(cluster, collection("/api/v1", "pods", namespace), labelSelector=selector)
    # A pod that does not answer holds up no other.
    with ThreadPoolExecutor(MAX_CONNECTIONS) as pool:
        return list(pool.map(lambda pod: _replica(cluster, pod), pods))


def _replica(cluster: Cluster, raw: Json) -> top_view.Replica:
    pod = Pod(raw=raw)
    model = f"{namespace_of(raw)}/{raw['metadata']['labels'].get(names.NAME_LABEL, '?')}"
    if pod.is_finished or not pod.ip:
        finding = diagnose_pod(pod, None, (), "")
        return top_view.Replica(model=model, name=pod.name, note=finding.reason if finding else "Starting")
    path = f"{collection('/api/v1', 'pods', namespace_of(raw))}/{name_of(raw)}:{_port(raw)}/proxy/metrics"
    note = "Draining" if pod.is_terminating else "" if pod.is_ready else "not ready"
    try:
        return top_view.Replica(model=model, name=pod.name, metrics=cluster.text(path), note=note)
    except CliError as error:
        return top_view.Replica(model=model, name=pod.name, note=str(error))


def _port(pod: Json) -> int:
    for container in pod["spec"]["containers"]:
        for port in container.get("ports") or () if container["name"] == names.CONTAINER else ():
            if port.get("name") == names.PORT_NAME:
                return int(port["containerPort"])
    return SERVER_PORT
