"""Paths, GPUs and arguments of local mode: decided from values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo_cli.errors import CliError
from octavo_cli.local import launch
from octavo_cli.local.replica import backoff_s
from octavo_operator.api.types import ModelDeployment
from octavo_operator.api.validation import parse_model_deployment
from octavo_operator.desired.engine_args import render_server_args
from octavo_testing.local_mode import a_manifest


def a_resource(name: str = "tiny", **spec: Any) -> ModelDeployment:
    return parse_model_deployment(a_manifest(name, **spec), creating=True)


def with_gpu(name: str = "tiny", **spec: Any) -> ModelDeployment:
    return a_resource(name, resources={"gpu": {"count": 1}}, **spec)


def test_a_path_in_a_mount_becomes_one_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").touch()

    found = launch.on_this_machine(a_resource(), {"/models": tmp_path})

    assert found.spec.model == f"file://{tmp_path}/tiny.gguf"


def test_the_longest_mount_wins_and_a_mount_is_a_whole_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "tiny.gguf").touch()
    mounts = {"/mod": tmp_path / "wrong", "/": tmp_path / "wrong", "/models": tmp_path / "deep"}

    assert launch.on_this_machine(a_resource(), mounts).spec.model == f"file://{tmp_path}/deep/tiny.gguf"


def test_a_path_that_exists_here_needs_no_mount(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").touch()
    resource = a_resource(model=f"file://{tmp_path}/tiny.gguf")

    assert launch.on_this_machine(resource, {}).spec.model == resource.spec.model


def test_a_volumes_path_can_be_mounted(tmp_path: Path) -> None:
    (tmp_path / "qwen").mkdir()

    found = launch.on_this_machine(a_resource(model="pvc://claim/qwen"), {"/mnt/model": tmp_path})

    assert found.spec.model == f"file://{tmp_path}/qwen"


@pytest.mark.parametrize(
    ("model", "remedy"),
    [("file:///models/tiny.gguf", "--mount /models=DIR"), ("pvc://claim/qwen", "--mount /mnt/model=DIR")],
)
def test_a_path_that_is_nowhere_names_the_mount_to_give(model: str, remedy: str) -> None:
    with pytest.raises(CliError, match=remedy):
        launch.on_this_machine(a_resource(model=model), {})


def test_a_hub_model_stays_as_it_is() -> None:
    resource = a_resource(model="hf://org/name@main")

    assert launch.on_this_machine(resource, {}) == resource


def test_the_arguments_are_the_pods_with_loopback_added() -> None:
    resource = a_resource(engine={"maxModelLen": 512, "extraArgs": ["--seed=1"]})
    ((one,),) = launch.plan_launches([resource], [])

    arguments = one.arguments(4711)

    assert "--host=127.0.0.1" in arguments
    assert [each for each in arguments if each != "--host=127.0.0.1"] == render_server_args(
        resource.spec, "tiny", port=4711
    )


def test_gpus_are_handed_out_in_order_until_none_is_left() -> None:
    launches = launch.plan_launches(
        [with_gpu("a", replicas=2), a_resource("b"), with_gpu("c", replicas=2)], ["0", "1", "5"]
    )

    assert [[each.gpu for each in group] for group in launches] == [["0", "1"], [None], ["5", None]]
    assert [each.name for group in launches for each in group if each.is_waiting_for_gpu] == ["c-1"]


def test_a_model_of_several_gpus_gets_as_many_and_is_dealt_out_to_them() -> None:
    two = {"gpu": {"count": 2}}
    launches = launch.plan_launches(
        [a_resource("a", resources=two), a_resource("b", resources=two), with_gpu("c")], ["0", "1", "5"]
    )

    [[a], [b], [c]] = launches
    assert [each.gpu for each in (a, b, c)] == ["0,1", None, "5"]
    assert [each.is_waiting_for_gpu for each in (a, b, c)] == [False, True, False]
    assert (a.environment["CUDA_VISIBLE_DEVICES"], "HIP_VISIBLE_DEVICES" in a.environment) == ("0,1", False)
    assert "--tensor-parallel-size=2" in a.arguments(1)
    assert not any("tensor-parallel" in each for each in c.arguments(1))


def test_a_model_of_several_gpus_is_whole_on_a_cpu() -> None:
    ((one,),) = launch.plan_launches([a_resource(resources={"gpu": {"count": 2}})], [])

    assert not any("tensor-parallel" in each for each in one.arguments(1))


def test_a_model_of_the_cpu_is_dealt_out_where_that_is_asked_for() -> None:
    cpu = {"engine": {"tensorParallelSize": 2}, "resources": {"gpu": {"count": 0}}}
    gpus = {"engine": {"tensorParallelSize": 2}, "resources": {"gpu": {"count": 2}}}

    [[of_cpu], [of_gpus]] = launch.plan_launches([a_resource("a", **cpu), a_resource("b", **gpus)], [])

    assert "--tensor-parallel-size=2" in of_cpu.arguments(1)
    assert not any("tensor-parallel" in each for each in of_gpus.arguments(1))


def test_without_any_gpu_everything_runs_on_the_cpu() -> None:
    ((one,),) = launch.plan_launches([with_gpu()], [])

    assert (one.gpu, one.is_waiting_for_gpu, one.environment["CUDA_VISIBLE_DEVICES"]) == (None, False, "")
    assert one.environment["HIP_VISIBLE_DEVICES"] == ""
    assert one.environment["OCTAVO_ROUTING_TAG"] == f"default/{one.resource.name}/{one.name}"
    assert launch.notes(with_gpu(), []) == ["this machine has no nvidia.com/gpu; it runs on the CPU"]
    assert launch.notes(with_gpu(), ["0"]) == []


@pytest.mark.parametrize(
    ("spec", "replicas"),
    [
        ({}, 1),
        ({"replicas": 3}, 3),
        ({"replicas": 0}, 0),
        ({"scaling": {"minReplicas": 0, "maxReplicas": 9}}, 1),
        ({"scaling": {"minReplicas": 2, "maxReplicas": 9}}, 2),
        ({"replicas": 3, "suspend": True}, 0),
    ],
)
def test_how_many_replicas_run_here(spec: dict[str, Any], replicas: int) -> None:
    assert launch.replicas_here(a_resource(**spec)) == replicas


def test_everything_of_a_manifest_that_does_not_apply_is_said() -> None:
    resource = a_resource(
        model="hf://org/name",
        resources={"gpu": {"count": 0}, "memory": "1Gi"},
        scaling={"maxReplicas": 2},
        rollout={"strategy": "Surge"},
        disruption={"maxUnavailable": 0},
        placement={"topologySpread": "Hard"},
        podTemplate={"metadata": {"labels": {"a": "b"}}},
        source={"secretRef": {"name": "s"}},
    )

    said = " ".join(launch.notes(resource, []))

    words = ("scaling", "rollout", "memory", "disruption", "placement", "podTemplate", "secretRef")
    assert [word for word in words if word not in said] == []
    assert launch.notes(a_resource(), []) == []
    (said,) = launch.notes(a_resource(resources={"gpu": {"product": "NVIDIA-L4"}}), ["0"])
    assert said == "resources.gpu.product does not apply here; there is one machine"
    claims = [{"name": "gpu", "resourceClaimTemplateName": "one"}]
    (said,) = launch.notes(a_resource(resources={"gpu": {"claims": claims}}), ["0"])
    assert said.startswith("resources.gpu.claims do not apply here")


@pytest.mark.parametrize(
    ("env", "found"),
    [({}, ["0", "1"]), ({"CUDA_VISIBLE_DEVICES": ""}, []), ({"CUDA_VISIBLE_DEVICES": "3,-1"}, ["3"])],
)
def test_gpus_are_found_by_their_device_files(tmp_path: Path, env: dict[str, str], found: list[str]) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()

    assert launch.find_gpus(env, tmp_path) == found


def test_back_off_doubles_up_to_a_minute() -> None:
    assert [backoff_s(failures) for failures in (0, 1, 2, 5, 6, 1000)] == [1, 2, 4, 32, 60, 60]
