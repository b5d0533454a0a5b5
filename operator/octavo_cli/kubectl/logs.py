"""`kubectl octavo logs NAME`: the servers' logs of all replicas, each line with its pod where there are several."""

from __future__ import annotations

import argparse
import queue
import sys
import threading
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from octavo_cli.errors import CliError
from octavo_operator.desired import names

from .cluster import Cluster
from .resources import collection, get_model, name_of, pods_of

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
Line = tuple[int, str | CliError]
"""The number of a pod, and a line of it, or why there are none (any more)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of the ModelDeployment")
    parser.add_argument("-f", "--follow", action="store_true", help="go on as lines come")
    parser.add_argument("-p", "--previous", action="store_true", help="of the container before the last restart")
    parser.add_argument("--tail", type=int, default=100, metavar="N", help="last lines of each pod; -1 is all (100)")
    parser.add_argument("--since", type=int, default=0, metavar="SECONDS", help="only lines that are not older")
    parser.add_argument("--pod", default="", help="only this pod")
    parser.add_argument("-c", "--container", default=names.CONTAINER, help="(%(default)s)")


def run(cluster: Cluster, given: argparse.Namespace, console: Console) -> int:
    pods = [name_of(pod) for pod in pods_of(cluster, cluster.namespace, given.name)]
    if given.pod:
        if given.pod not in pods:
            raise CliError(f"{given.name} has no pod {given.pod!r}; it has {', '.join(pods) or 'none'}")
        pods = [given.pod]
    if not pods:
        model = get_model(cluster, given.name)
        raise CliError(f"{name_of(model)} has no pods; `kubectl octavo status {given.name}` says why")
    query = query_of(given)
    if given.follow and len(pods) > 1:
        lines = _together(cluster, pods, query)
    else:
        lines = (found for number, pod in enumerate(pods) for found in _of_one(cluster, number, pod, query))
    status = 0
    for number, line in lines:
        if isinstance(line, CliError):
            if len(pods) == 1:
                raise line
            # At once: the others' lines may go on for ever.
            print(f"error: {line}", file=sys.stderr)
            status = 1
        else:
            console.print(_shown(pods, number, line), soft_wrap=True)
    return status


def query_of(given: argparse.Namespace) -> dict[str, str]:
    """Of the pods' log subresource."""
    return {
        "container": given.container,
        **({"follow": "true"} if given.follow else {}),
        **({"previous": "true"} if given.previous else {}),
        **({"tailLines": str(given.tail)} if given.tail >= 0 else {}),
        **({"sinceSeconds": str(given.since)} if given.since > 0 else {}),
    }


def _of_one(cluster: Cluster, number: int, pod: str, query: dict[str, str]) -> Iterator[Line]:
    """A pod that has not started, or goes meanwhile, does not end the others' lines."""
    path = f"{collection('/api/v1', 'pods', cluster.namespace)}/{pod}/log"
    try:
        yield from ((number, line) for line in cluster.lines(path, **query))
    except CliError as error:
        yield number, error


def _together(cluster: Cluster, pods: list[str], query: dict[str, str]) -> Iterator[Line]:
    """As they come, from one thread a pod; ends when the last of them does."""
    arrived: queue.Queue[Line | None] = queue.Queue(maxsize=10_000)

    def read(number: int, pod: str) -> None:
        try:
            for found in _of_one(cluster, number, pod, query):
                arrived.put(found)
        finally:
            arrived.put(None)

    for number, pod in enumerate(pods):
        threading.Thread(target=read, args=(number, pod), daemon=True).start()
    running = len(pods)
    while running:
        found = arrived.get()
        if found is None:
            running -= 1
        else:
            yield found


def _shown(pods: list[str], number: int, line: str) -> Text:
    if len(pods) == 1:
        return Text(line)
    return Text.assemble((f"{pods[number]}: ", COLOURS[number % len(COLOURS)]), line)
