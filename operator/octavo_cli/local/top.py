"""`octavo top`: load and speed of each replica that `octavo up` runs on this machine."""

from __future__ import annotations

import argparse
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence

from octavo_cli import top_view
from octavo_cli.terminal import Terminal

from .state import ReplicaState, running, state_home

TIMEOUT_S = 5.0


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="octavo top", description=(__doc__ or "").partition(": ")[2])
    top_view.add_arguments(parser)
    given = parser.parse_args(argv)
    if not look(os.environ):
        print("nothing runs; start with: octavo up examples/quickstart.yaml --mount /models=DIR")
        return 0
    return top_view.show(top_view.TopView(lambda: look(os.environ)), given, Terminal())


def look(env: Mapping[str, str]) -> list[top_view.Replica]:
    """Every replica of every run of this user."""
    return [_replica(each) for run in running(state_home(env)) for each in run.replicas]


def _replica(replica: ReplicaState) -> top_view.Replica:
    if not replica.url:
        return top_view.Replica(model=replica.model, name=replica.name, note="not running")
    note = "" if replica.is_ready else "not ready"
    try:
        with urllib.request.urlopen(f"{replica.url}/metrics", timeout=TIMEOUT_S) as answer:
            text = answer.read().decode()
    except (OSError, urllib.error.URLError) as error:
        return top_view.Replica(model=replica.model, name=replica.name, note=f"does not answer: {error}")
    return top_view.Replica(model=replica.model, name=replica.name, metrics=text, note=note)
