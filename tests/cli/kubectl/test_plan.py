"""`kubectl octavo plan`: what is asked of `octavo plan` is what the pods would be started with."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from octavo_cli import __main__ as octavo
from octavo_cli.errors import CliError
from octavo_cli.kubectl import __main__ as plugin
from octavo_cli.kubectl import plan
from octavo_server.plan.command import FLAGS, plan_parser
from octavo_testing.kube_objects import MODELS, FakeCluster, a_model

ENGINE = {
    "maxModelLen": 4096,
    "dtype": "bfloat16",
    "prefixCaching": False,
    "quantization": "int4",
    "extraArgs": ["--block-size=32", "--log-level=debug"],
}


def a_resource(model: str, **spec: Any) -> dict[str, Any]:
    found = a_model(spec={"model": model, **spec})
    return {"apiVersion": "octavo.dev/v1alpha1", "kind": "ModelDeployment", **found}


def test_the_resources_model_and_settings_become_arguments_that_a_plan_knows() -> None:
    arguments = plan.arguments_of(a_resource("hf://org/name@v1", servedNames=["a"], engine=ENGINE), FLAGS)

    settings = ["--max-model-len=4096", "--dtype=bfloat16", "--quantization=int4", "--block-size=32"]
    assert arguments == ["org/name", "--revision=v1", *settings]
    plan_parser().parse_strictly(arguments)


def test_a_model_of_several_gpus_is_planned_for_each() -> None:
    arguments = plan.arguments_of(a_resource("hf://org/name", resources={"gpu": {"count": 4}}), FLAGS)

    assert arguments == ["org/name", "--tp=4"]
    plan_parser().parse_strictly(arguments)


def test_a_model_of_several_ranks_on_a_cpu_is_planned_for_each() -> None:
    ranks = {"engine": {"tensorParallelSize": 2}, "resources": {"gpu": {"count": 0}}}

    assert plan.arguments_of(a_resource("hf://org/name", **ranks), FLAGS) == ["org/name", "--tp=2"]


@pytest.mark.parametrize("model", ["file:///models/a.gguf", "pvc://claim/a"])
def test_a_model_that_only_the_cluster_has_is_refused_with_a_remedy(model: str) -> None:
    with pytest.raises(CliError, match="give the model as hf://ORG/NAME"):
        plan.arguments_of(a_resource(model), FLAGS)


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["qwen", "--gpu", "h100"], ["org/name", "--gpu", "h100"]),
        (["org/other", "--max-model-len=8"], ["org/other", "--max-model-len=8"]),
    ],
)
def test_a_name_is_looked_up_and_a_model_is_not(
    words: list[str], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(octavo, "run", lambda name, command, rest: called.append((name, rest)) or 0)
    parser = plugin.parser(only="plan")
    plan.add_arguments(parser.subcommands["plan"])
    cluster = FakeCluster({f"{MODELS}/qwen": a_resource("hf://org/name")})

    assert plan.run(cluster, parser.parse_args(["plan", *words]), Console(quiet=True)) == 0
    assert called == [("plan", asked)]
