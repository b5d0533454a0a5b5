"""`kubectl octavo plan NAME|MODEL [ARGUMENTS]`: `octavo plan` for a ModelDeployment's model, or for any other."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping

from rich.console import Console

from octavo_cli import __main__ as octavo
from octavo_cli.errors import CliError

from .cluster import Cluster
from .resources import get_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name of a ModelDeployment, or a model as `octavo plan` takes it")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="further arguments of `octavo plan`")


def run(cluster: Cluster, given: argparse.Namespace, console: Console) -> int:
    arguments = [given.model]
    if "/" not in given.model:
        from octavo_server.plan.command import FLAGS

        arguments = arguments_of(get_model(cluster, given.model), FLAGS)
    return octavo.run("plan", octavo.COMMANDS["plan"], [*arguments, *given.rest])


def arguments_of(model: Mapping[str, object], flags: Iterable[str]) -> list[str]:
    """What `octavo plan` is to be asked: the server's own arguments, as far as a plan depends on them."""
    from octavo_operator.api.validation import parse_model_deployment
    from octavo_operator.desired.engine_args import num_ranks, parse_source, render_server_args
    from octavo_operator.errors import SpecInvalidError

    try:
        resource = parse_model_deployment(dict(model))
    except SpecInvalidError as error:
        raise CliError(f"its spec is invalid: {error}") from error
    scheme = parse_source(resource.spec.model).scheme
    if scheme in ("file", "pvc"):
        raise CliError(f"{resource.spec.model} is readable in the cluster alone; give the model as hf://ORG/NAME")
    source, *settings = render_server_args(resource.spec, resource.name)
    known = {f"--{flag.replace('_', '-')}" for flag in flags}
    ranks = num_ranks(resource.spec, resource.spec.resources.gpu.count)
    ways = [f"--tp={ranks}"] if ranks > 1 else []
    return [source, *ways, *(each for each in settings if each.partition("=")[0] in known)]
