"""The arguments of `octavo serve` that a ModelDeployment stands for."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.desired.engine_args import ModelSource, num_ranks, parse_source, render_server_args
from octavo_testing.control_plane import a_resource

DIGEST = "sha256:" + "a" * 64


def args(**spec: Any) -> list[str]:
    return render_server_args(a_resource(**spec).spec, "qwen")


def test_only_model_names_and_life_are_said_by_default() -> None:
    expected = ["org/name", "--port=8000", "--served-model-name", "qwen", "--shutdown-timeout=120"]

    assert args(model="hf://org/name") == expected


def test_every_setting_of_the_engine_becomes_a_flag() -> None:
    engine = {
        "maxModelLen": 4096,
        "maxNumSeqs": 8,
        "gpuMemoryUtilization": "0.85",
        "dtype": "float16",
        "quantization": "int4",
        "kvCacheDtype": "fp8",
        "prefixCaching": False,
        "extraArgs": ["--seed=1"],
    }

    rendered = args(model="hf://org/name@v2", servedNames=["a", "b"], engine=engine, drain={"timeout": "30s"})

    assert rendered == [
        "org/name",
        "--port=8000",
        "--served-model-name",
        "a",
        "b",
        "--revision=v2",
        "--max-model-len=4096",
        "--max-num-seqs=8",
        "--gpu-memory-utilization=0.85",
        "--dtype=float16",
        "--quantization=int4",
        "--kv-cache-dtype=fp8",
        "--no-enable-prefix-caching",
        "--shutdown-timeout=30",
        "--seed=1",
    ]


def test_the_server_gets_what_the_model_must_be_and_which_of_its_files() -> None:
    rendered = args(source={"checksum": DIGEST, "allow": ["a-*.safetensors", "b.safetensors"]})

    assert [arg for arg in rendered if "weight" in arg or "checksum" in arg] == [
        "--weight-files=a-*.safetensors",
        "--weight-files=b.safetensors",
        f"--model-checksum={DIGEST}",
    ]


@pytest.mark.parametrize(
    ("count", "asked", "num_gpus", "ranks"), [(4, 0, 4, 4), (4, 4, 0, 1), (1, 0, 1, 1), (0, 3, 0, 3), (0, 0, 0, 1)]
)
def test_a_model_has_a_rank_for_each_gpu_that_is_there_or_what_is_asked_for_on_the_cpu(
    count: int, asked: int, num_gpus: int, ranks: int
) -> None:
    spec = a_resource(resources={"gpu": {"count": count}}, engine={"tensorParallelSize": asked}).spec

    assert num_ranks(spec, num_gpus) == ranks


def test_local_mode_chooses_the_port() -> None:
    assert "--port=9001" in render_server_args(a_resource().spec, "qwen", port=9001)


@pytest.mark.parametrize(
    ("model", "source"),
    [
        ("hf://org/name", ModelSource(scheme="hf", location="org/name")),
        ("hf://org/name@main", ModelSource(scheme="hf", location="org/name", revision="main")),
        ("hf://org/name/q4/a.gguf@v1", ModelSource(scheme="hf", location="org/name/q4/a.gguf", revision="v1")),
        ("s3://bucket/a", ModelSource(scheme="s3", location="s3://bucket/a")),
        ("https://host/a@b/", ModelSource(scheme="https", location="https://host/a@b/")),
        (f"oci://r/m@{DIGEST}", ModelSource(scheme="oci", location=f"oci://r/m@{DIGEST}")),
        ("file:///models/a@b.gguf", ModelSource(scheme="file", location="/models/a@b.gguf")),
        ("pvc://claim/a/b", ModelSource(scheme="pvc", location="/mnt/model/a/b", claim="claim")),
        ("pvc://claim", ModelSource(scheme="pvc", location="/mnt/model", claim="claim")),
    ],
)
def test_uri_is_taken_apart(model: str, source: ModelSource) -> None:
    assert parse_source(model) == source
