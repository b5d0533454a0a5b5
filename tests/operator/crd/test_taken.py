"""What the API server takes of a ModelDeployment, and the operator reads."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.api.validation import parse_model_deployment
from octavo_testing.apiserver import ApiServer
from octavo_testing.crd import create, manifest

EVERYTHING = {
    "model": "hf://org/name/q4/a.gguf@v1",
    "source": {
        "secretRef": {"name": "hf", "key": "token"},
        "checksum": "sha256:" + "a" * 64,
        "allow": ["model-*.safetensors"],
    },
    "cache": {"type": "PVC", "size": "40Gi", "storageClassName": "nfs", "accessMode": "ReadWriteOnce"},
    "servedNames": ["a", "org/b:c"],
    "adapters": [],
    "resources": {
        "gpu": {"count": 8, "resourceName": "amd.com/gpu", "product": "AMD_Instinct_MI300X_OAM"},
        "cpu": 2,
        "memory": "1Gi",
        "sharedMemory": "1Gi",
    },
    "engine": {
        "maxModelLen": 4096,
        "maxNumSeqs": 8,
        "gpuMemoryUtilization": "0.85",
        "dtype": "float32",
        "quantization": "int4",
        "kvCacheDtype": "fp8",
        "prefixCaching": False,
        "tensorParallelSize": 8,
        "speculative": {},
        "extraArgs": ["--seed=1"],
    },
    "scaling": {
        "minReplicas": 0,
        "maxReplicas": 4,
        "targetPressure": "1.5",
        "idleAfter": "1h30m",
        "backend": "BuiltIn",
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}},
        "schedules": [
            {
                "name": "day",
                "cron": "0 8 * * 1-5",
                "timeZone": "Europe/Berlin",
                "minReplicas": 2,
                "maxReplicas": 8,
            },
            {"name": "night", "cron": "*/15 20-23 * * MON"},
        ],
    },
    "drain": {"timeout": "30s"},
    "routing": {"strategy": "RoundRobin", "maxHeldRequests": 1, "holdTimeout": "1m", "inferencePool": False},
    "access": {
        "keysFrom": [{"secretRef": {"name": "team-keys"}}],
        "tokensPerMinute": 60_000,
        "tokensPerDay": 10**9,
        "audit": "Full",
    },
    "rollout": {
        "strategy": "HoldAndSwap",
        "maxHold": "90s",
        "when": {"policy": "Window", "cron": "0 2 * * 1-5", "duration": "2h", "timeZone": "America/Argentina/Ushuaia"},
        "gate": {
            "prompts": [{"prompt": "2 + 2?", "expect": "4", "maxTokens": 8}],
            "minThroughputRatio": "0.9",
            "query": {"prometheus": "http://prometheus.monitoring:9090/base", "expr": "up", "max": "-0.5"},
            "timeout": "2m",
        },
        "operatorUpgrade": "Roll",
    },
    "disruption": {"maxUnavailable": "25%"},
    "placement": {
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {}}},
        "topologySpread": "Hard",
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
    },
    "podTemplate": {"spec": {"containers": [{"name": "server", "env": []}, {"name": "side", "command": ["x"]}]}},
    "suspend": True,
}


@pytest.mark.parametrize(
    "model",
    [
        "https://host/m.gguf?X-Amz-Signature=a%2Fb",
        "https://host:8443/models/qwen/",
        "s3://bucket/models/qwen/",
        "gs://bucket.example.com/a.gguf",
        "oci://registry:5000/org/model:v1",
        "oci://registry.io/model@sha256:" + "a" * 64,
        "file:///m/a.gguf",
        "pvc://claim",
    ],
)
def test_every_source_is_taken(clean: ApiServer, model: str) -> None:
    assert create(clean, manifest("one", model=model)).status == 201
    assert parse_model_deployment(manifest("one", model=model)).spec.model == model


@pytest.mark.parametrize(
    ("model", "cache", "kind"),
    [
        ("hf://org/name", {}, "None"),
        ("hf://org/name", {"type": "None"}, "None"),
        ("hf://org/name", {"storageClassName": "nfs", "size": "1Gi"}, "PVC"),
        ("s3://bucket/m", {"type": "PVC", "size": 1000000}, "PVC"),
        ("gs://bucket/m", {"type": "NodeLocal", "size": "1Gi", "storageClassName": "local"}, "NodeLocal"),
        ("oci://r/m", {"type": "Image"}, "Image"),
        ("file:///m", {"type": "None"}, "None"),
        ("pvc://claim", {"type": "Auto"}, "None"),
    ],
)
def test_every_cache_is_taken(clean: ApiServer, model: str, cache: dict[str, Any], kind: str) -> None:
    assert create(clean, manifest("one", model=model, cache=cache)).status == 201
    assert parse_model_deployment(manifest("one", model=model, cache=cache)).spec.cache.kind == kind


def test_one_field_and_every_field_are_taken(clean: ApiServer) -> None:
    assert create(clean, manifest("one")).status == 201
    assert create(clean, manifest("all", **EVERYTHING)).status == 201
    assert parse_model_deployment(manifest("all", **EVERYTHING)).spec.suspend


def test_claims_are_taken_in_place_of_a_product(clean: ApiServer) -> None:
    claims = [{"name": "gpu", "resourceClaimTemplateName": "two-gpus"}]
    gpu = {"count": 2, "resourceName": "amd.com/gpu", "claims": claims}

    assert create(clean, manifest("claiming", resources={"gpu": gpu})).status == 201
    read = parse_model_deployment(manifest("claiming", resources={"gpu": gpu})).spec.resources.gpu
    assert [(claim.name, claim.template) for claim in read.claims] == [("gpu", "two-gpus")]


@pytest.mark.parametrize("argument", ["--seed=1", "--device=cpu", "--max-model-length=1", "--portal"])
def test_an_argument_that_nothing_else_sets_is_taken(clean: ApiServer, argument: str) -> None:
    body = manifest(engine={"extraArgs": [argument]})

    assert create(clean, body).status == 201
    assert parse_model_deployment(body).spec.engine.extra_args == (argument,)


@pytest.mark.parametrize("num_gpus", [0, 1, 2])
def test_ranks_may_be_said_where_they_are_the_gpus_or_share_the_cpu(clean: ApiServer, num_gpus: int) -> None:
    for ranks in {0, num_gpus or 5}:
        body = manifest(f"ranks{ranks}", engine={"tensorParallelSize": ranks}, resources={"gpu": {"count": num_gpus}})

        assert create(clean, body).status == 201
        assert parse_model_deployment(body).spec.engine.tensor_parallel_size == ranks


def test_a_schedule_with_zero_may_have_an_idle_time(clean: ApiServer) -> None:
    night = {"name": "night", "cron": "0 20 * * *", "minReplicas": 0}
    body = manifest(scaling={"maxReplicas": 2, "idleAfter": "5m", "schedules": [night]})

    assert create(clean, body).status == 201
    assert parse_model_deployment(body).spec.scaling.idle_after_s == 300  # type: ignore[union-attr]  # it is there
