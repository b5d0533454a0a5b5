"""The plugin's entry point: `kubectl-octavo` on the PATH becomes `kubectl octavo`.

`--help` imports nothing but the standard library; the packages of the cluster are imported by the command that runs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from octavo_cli.__main__ import guarded

COMMANDS = {
    "status": "why a ModelDeployment is as it is: its revisions, pods, conditions and events as a tree",
    "logs": "logs of all replicas of a ModelDeployment",
    "chat": "talk to a ModelDeployment through the gateway",
    "top": "live pressure, tokens a second and time to first token of each replica",
    "rollout": "status, pause, resume or undo a rollout",
    "plan": "how much memory a ModelDeployment's replica takes and how much fits",
    "doctor": "check the cluster and say what to do; the exit status is 1 where something is broken",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    given, _ = parser().parse_known_args(arguments)
    if given.command is None:
        parser().print_help()
        return 2
    return guarded("kubectl-octavo", "operator", lambda: _run(arguments, given.command))


def _run(arguments: Sequence[str], command: str) -> int:
    from octavo_cli.terminal import Terminal

    from .cluster import connect

    module = importlib.import_module(f"octavo_cli.kubectl.{command}")
    full = parser(only=command)
    module.add_arguments(full.subcommands[command])
    given = full.parse_args(arguments)
    with connect(kubeconfig=given.kubeconfig, context=given.context, namespace=given.namespace) as cluster:
        status: int = module.run(cluster, given, Terminal())
    return status


class _Parser(argparse.ArgumentParser):
    """Knows its subcommands' parsers, so that a command can add its own arguments once it is imported."""

    subcommands: dict[str, argparse.ArgumentParser]


def parser(*, only: str = "") -> _Parser:
    """Of all commands; with `only`, that command explains itself, once its own arguments are added."""
    top = _Parser(prog="kubectl octavo", description="See and steer ModelDeployments.", parents=[_common(True)])
    sub = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=argparse.ArgumentParser)
    top.subcommands = {}
    for name, text in COMMANDS.items():
        top.subcommands[name] = sub.add_parser(
            name, help=text, description=text, parents=[_common(False)], add_help=bool(only)
        )
    return top


def _common(is_top: bool) -> argparse.ArgumentParser:
    """The flags of kubectl itself, before or after the command; the later one wins."""
    common = argparse.ArgumentParser(add_help=False)
    for flags, text in (
        (("-n", "--namespace"), "namespace (default: the context's)"),
        (("--context",), "context of the kubeconfig (default: the current one)"),
        (("--kubeconfig",), "kubeconfig file (default: $KUBECONFIG, ~/.kube/config)"),
    ):
        common.add_argument(*flags, default="" if is_top else argparse.SUPPRESS, metavar="NAME", help=text)
    return common


if __name__ == "__main__":
    sys.exit(main())
