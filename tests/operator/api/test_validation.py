"""What a manifest may say, and the sentence for each thing that it may not."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.api.types import (
    Access,
    GateQuery,
    GoldenPrompt,
    Rollout,
    RolloutGate,
    RolloutWhen,
    Scaling,
    ScalingSchedule,
    SecretRef,
    Source,
)
from octavo_operator.api.validation import parse_model_deployment
from octavo_operator.errors import SpecInvalidError
from octavo_testing.control_plane import a_manifest, a_resource

CHECKSUM = "sha256:" + "a" * 64
SCHEDULE = {"name": "day", "cron": "0 8 * * 1-5"}
WHOLE: dict[str, Any] = {
    "source": {"secretRef": {"name": "hf", "key": "t"}, "checksum": CHECKSUM, "allow": ["a.*"]},
    "servedNames": ["a", "b"],
    "adapters": [],
    "resources": {
        "gpu": {"count": 0, "resourceName": "amd.com/gpu"},
        "cpu": 2,
        "memory": "1Gi",
        "sharedMemory": "2Gi",
    },
    "engine": {
        "maxModelLen": 4096,
        "maxNumSeqs": 8,
        "gpuMemoryUtilization": "0.85",
        "dtype": "float16",
        "quantization": "int8",
        "kvCacheDtype": "fp8",
        "prefixCaching": False,
        "tensorParallelSize": 2,
        "speculative": {},
        "extraArgs": ["--seed=1"],
    },
    "replicas": 2,
    "drain": {"timeout": "1m"},
    "routing": {"strategy": "LeastPressure", "maxHeldRequests": 5, "holdTimeout": "30s", "inferencePool": False},
    "access": {
        "keysFrom": [{"secretRef": {"name": "a"}}, {"secretRef": {"name": "b"}}],
        "tokensPerMinute": 7,
        "tokensPerDay": 9,
        "audit": "None",
    },
    "rollout": {
        "strategy": "HoldAndSwap",
        "maxHold": "90s",
        "when": {"policy": "Window", "cron": "0 2 * * *", "duration": "1h", "timeZone": "Europe/Berlin"},
        "gate": {
            "prompts": [{"prompt": "2 + 2?", "expect": "4"}],
            "minThroughputRatio": "0.9",
            "query": {"prometheus": "http://p:9090", "expr": "up", "max": "1"},
            "timeout": "2m",
        },
        "operatorUpgrade": "Roll",
    },
    "disruption": {"maxUnavailable": "25%"},
    "placement": {
        "nodeSelector": {"gpu": "yes"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpread": "Hard",
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
    },
    "podTemplate": {"spec": {"containers": [{"name": "server", "env": []}, {"name": "side", "command": ["x"]}]}},
    "suspend": True,
}
"""Every field that a manifest may have, but for those that exclude one another."""


def test_one_field_is_enough() -> None:
    resource = a_resource("qwen")

    assert resource.served_names == ("qwen",)
    assert resource.wanted_replicas == 1
    assert resource.spec.resources.gpu.count == 1
    assert (resource.namespace, resource.generation) == ("default", 3)


def test_every_field_of_the_server_is_read() -> None:
    spec = a_resource(**WHOLE).spec

    assert spec.source == Source(secret_ref=SecretRef(name="hf", key="t"), checksum=CHECKSUM, allow=("a.*",))
    assert spec.served_names == ("a", "b")
    assert (spec.resources.cpu, spec.resources.memory, spec.resources.shared_memory) == ("2", "1Gi", "2Gi")
    assert spec.resources.gpu.resource_name == "amd.com/gpu"
    assert (spec.engine.max_model_len, spec.engine.max_num_seqs, spec.engine.dtype) == (4096, 8, "float16")
    assert (spec.engine.quantization, spec.engine.kv_cache_dtype, spec.engine.tensor_parallel_size) == (
        "int8",
        "fp8",
        2,
    )
    assert spec.engine.extra_args == ("--seed=1",)
    assert (spec.replicas, spec.drain_timeout_s, spec.suspend) == (2, 60, True)
    assert (spec.routing.strategy, spec.routing.max_held_requests, spec.routing.hold_timeout_s) == (
        "LeastPressure",
        5,
        30,
    )
    assert spec.disruption.max_unavailable == "25%"
    assert spec.placement.topology_spread == "Hard"
    assert spec.pod_template["spec"]["containers"][1]["name"] == "side"


def test_every_field_of_access_and_rollout_is_read() -> None:
    spec = a_resource(**WHOLE).spec

    assert spec.access == Access(keys_from=("a", "b"), tokens_per_minute=7, tokens_per_day=9, audit="None")
    window = RolloutWhen(policy="Window", cron="0 2 * * *", duration_s=3600, time_zone="Europe/Berlin")
    gate = RolloutGate(
        prompts=(GoldenPrompt(prompt="2 + 2?", expect="4", max_tokens=64),),
        min_throughput_ratio="0.9",
        query=GateQuery(prometheus="http://p:9090", expr="up", maximum="1"),
        timeout_s=120,
    )
    assert spec.rollout == Rollout(
        strategy="HoldAndSwap", max_hold_s=90, when=window, gate=gate, operator_upgrade="Roll"
    )


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"maxReplicas": 4}, Scaling(max_replicas=4)),
        ({"maxReplicas": 4, "minReplicas": 0}, Scaling(max_replicas=4, min_replicas=0, idle_after_s=600)),
        (
            {"maxReplicas": 4, "minReplicas": 0, "idleAfter": "90s", "behavior": {"scaleUp": {"x": 1}}},
            Scaling(max_replicas=4, min_replicas=0, idle_after_s=90, behavior={"scaleUp": {"x": 1}}),
        ),
        (
            {"maxReplicas": 4, "schedules": [{"name": "night", "cron": "0 20 * * *", "minReplicas": 0}]},
            Scaling(
                max_replicas=4,
                idle_after_s=600,
                schedules=(ScalingSchedule(name="night", cron="0 20 * * *", min_replicas=0),),
            ),
        ),
    ],
)
def test_scaling_is_read_with_its_defaults(scaling: dict[str, Any], expected: Scaling) -> None:
    assert a_resource(scaling=scaling).spec.scaling == expected


def test_scaled_resource_starts_with_at_least_one_replica() -> None:
    resource = a_resource(scaling={"minReplicas": 0, "maxReplicas": 4})

    assert resource.wanted_replicas == 1
    assert resource.most_replicas == 4
    assert resource.may_sleep


def test_replicas_beside_scaling_are_the_autoscalers() -> None:
    assert a_resource(scaling={"maxReplicas": 4}, replicas=3).wanted_replicas == 3


def test_person_may_not_give_both() -> None:
    manifest = a_manifest(scaling={"maxReplicas": 4}, replicas=3)

    with pytest.raises(SpecInvalidError, match=r"spec\.replicas: and spec\.scaling exclude each other"):
        parse_model_deployment(manifest, creating=True)


CLAIMS = [{"name": "gpu", "resourceClaimTemplateName": "two-gpus"}]
INVALID = {
    "no model": ({"model": None}, "spec.model: is required"),
    "unknown scheme": ({"model": "az://bucket/x"}, "spec.model: 'az://bucket/x' must be hf://"),
    "path with dots": ({"model": "file:///a/../b"}, "spec.model: must not contain '..'"),
    "model is a number": ({"model": 5}, "spec.model: must be a string, not a number"),
    "keys without a Secret": ({"access": {"keysFrom": [{}]}}, "spec.access.keysFrom[0].secretRef.name: is required"),
    "keys by value": ({"access": {"keysFrom": ["sk-1"]}}, "spec.access.keysFrom: must be a list of at most 16 objects"),
    "misspelt field": ({"servedName": ["x"]}, "spec.servedName: unknown field; did you mean 'servedNames'?"),
    "strange field": ({"zzz": 1}, "spec.zzz: unknown field; known are "),
    "secret without name": ({"source": {"secretRef": {}}}, "spec.source.secretRef.name: is required"),
    "secret for what is mounted": (
        {"model": "file:///m", "source": {"secretRef": {"name": "x"}}},
        "spec.source.secretRef: is for models that are fetched; file:// is mounted",
    ),
    "choice in what is mounted": ({"model": "pvc://c", "source": {"allow": ["*"]}}, "pvc:// is mounted"),
    "key where names say it": (
        {"model": "gs://bucket/x", "source": {"secretRef": {"name": "x", "key": "t"}}},
        "spec.source.secretRef.key: is for hf:// and https://",
    ),
    "checksum": ({"source": {"checksum": "abc"}}, "spec.source.checksum: 'abc' must be sha256: and 64 digits"),
    "pattern": ({"source": {"allow": ["a b"]}}, "spec.source.allow: 'a b' is no pattern"),
    "claim without size": ({"cache": {"type": "PVC"}}, "spec.cache.size: is required for a PersistentVolumeClaim"),
    "size of nothing": ({"cache": {"size": "1Gi"}}, "spec.cache.size: and storageClassName are for PVC"),
    "size that is none": ({"cache": {"type": "PVC", "size": "0"}}, "spec.cache.size: '0' is no quantity"),
    "a cache of what is mounted": (
        {"model": "file:///m", "cache": {"type": "PVC", "size": "1Gi"}},
        "spec.cache: is for models that are fetched; file:// is mounted",
    ),
    "names twice": ({"servedNames": ["a", "a"]}, "spec.servedNames: holds a name twice"),
    "bad served name": ({"servedNames": ["a b"]}, "spec.servedNames: 'a b' must begin"),
    "too many names": ({"servedNames": [f"n{i}" for i in range(17)]}, "has 17 items, at most 16"),
    "names are no list": ({"servedNames": "a"}, "spec.servedNames: must be a list of non-empty strings"),
    "more GPUs than a node has": (
        {"resources": {"gpu": {"count": 17}}},
        "spec.resources.gpu.count: is 17, must be from 0 to 16",
    ),
    "two slices of GPUs": (
        {"resources": {"gpu": {"count": 2, "resourceName": "nvidia.com/mig-3g.40gb"}}},
        "spec.resources.gpu.count: is 2 slices of GPUs (nvidia.com/mig-3g.40gb), between which NCCL cannot speak",
    ),
    "GPU count is true": ({"resources": {"gpu": {"count": True}}}, "must be a whole number, not a boolean"),
    "GPU resource": ({"resources": {"gpu": {"resourceName": "gpu"}}}, "must be like nvidia.com/gpu"),
    "a product that is no label": (
        {"resources": {"gpu": {"product": "NVIDIA H100"}}},
        "spec.resources.gpu.product: 'NVIDIA H100' is no value of a node's label",
    ),
    "a product of no GPU": (
        {"resources": {"gpu": {"count": 0, "product": "NVIDIA-L4"}}},
        "spec.resources.gpu.product: is NVIDIA-L4, but count is 0",
    ),
    "a product of who labels nothing": (
        {"resources": {"gpu": {"resourceName": "gpu.intel.com/xe", "product": "Max_1550"}}},
        "no label of nodes is known for gpu.intel.com/xe",
    ),
    "two products": (
        {
            "resources": {"gpu": {"product": "NVIDIA-L4"}},
            "placement": {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L40S"}},
        },
        "spec.placement.nodeSelector: and resources.gpu.product both say which nvidia.com/gpu.product",
    ),
    "claims without a GPU": (
        {"resources": {"gpu": {"count": 0, "claims": CLAIMS}}},
        "spec.resources.gpu.count: is 0, but claims ask for devices",
    ),
    "claims of a product": (
        {"resources": {"gpu": {"product": "NVIDIA-L4", "claims": CLAIMS}}},
        "spec.resources.gpu.product: is for resourceName",
    ),
    "claims of slices": (
        {"resources": {"gpu": {"resourceName": "nvidia.com/mig-1g.10gb", "claims": CLAIMS}}},
        "spec.resources.gpu.resourceName: is nvidia.com/mig-1g.10gb; beside claims it says whose GPUs they are",
    ),
    "a claim twice": ({"resources": {"gpu": {"claims": [*CLAIMS, *CLAIMS]}}}, "gpu.claims: holds a name twice"),
    "a claim of nothing": (
        {"resources": {"gpu": {"claims": [{"name": "gpu"}]}}},
        "claims[0].resourceClaimTemplateName: is required",
    ),
    "no name of a claim": (
        {"resources": {"gpu": {"claims": [{"name": "GPU", "resourceClaimTemplateName": "a b"}]}}},
        "claims[0].name: 'GPU' must hold",
    ),
    "claims are words": ({"resources": {"gpu": {"claims": ["gpu"]}}}, "must be a list of at most 8 objects"),
    "memory": ({"resources": {"memory": "lots"}}, "spec.resources.memory: 'lots' is no quantity"),
    "negative cpu": ({"resources": {"cpu": -1}}, "spec.resources.cpu: -1 is no quantity"),
    "cpu is true": ({"resources": {"cpu": True}}, "spec.resources.cpu: True is no quantity"),
    "resources are a list": ({"resources": []}, "spec.resources: must be an object, not a list"),
    "utilization": ({"engine": {"gpuMemoryUtilization": "1.1"}}, "must be a string in (0, 1]"),
    "dtype": ({"engine": {"dtype": "int3"}}, "spec.engine.dtype: is 'int3', must be one of auto"),
    "adapters": (
        {"adapters": [{"name": "sql"}]},
        "spec.adapters: is not served yet; merge the adapter into the model's weights",
    ),
    "inference pool": ({"routing": {"inferencePool": True}}, "spec.routing.inferencePool: is not served yet; leave it"),
    "quantization of a later version": (
        {"engine": {"quantization": "awq"}},
        "spec.engine.quantization: awq is not served yet, only int8, int4 and fp8; use an unquantised checkpoint or a GGUF file",
    ),
    "quantization": ({"engine": {"quantization": "int3"}}, "spec.engine.quantization: is 'int3', must be one of"),
    "a small K/V cache": (
        {"engine": {"kvCacheDtype": "int8"}},
        "spec.engine.kvCacheDtype: int8 is not served yet, only auto and fp8; use fp8, or auto, the type of the activations",
    ),
    "a guess": ({"engine": {"speculative": {"numTokens": 0}}}, "spec.engine.speculative: is not served yet; leave it"),
    "fewer ranks than GPUs": (
        {"engine": {"tensorParallelSize": 2}, "resources": {"gpu": {"count": 4}}},
        "spec.engine.tensorParallelSize: is 2 and resources.gpu.count 4: each GPU holds one part; leave it 0",
    ),
    "too many ranks": (
        {"engine": {"tensorParallelSize": 17}, "resources": {"gpu": {"count": 0}}},
        "spec.engine.tensorParallelSize: is 17, must be from 0 to 16",
    ),
    "prefix caching": ({"engine": {"prefixCaching": "yes"}}, "must be true or false, not a string"),
    "reserved argument": ({"engine": {"extraArgs": ["--port=1"]}}, "may not set --port"),
    "argument of a field": (
        {"engine": {"extraArgs": ["--seed=1", "--tensor-parallel-size=2"]}},
        "spec.engine.extraArgs: may not set --tensor-parallel-size; use the field resources.gpu.count",
    ),
    "no maxReplicas": ({"scaling": {}}, "spec.scaling.maxReplicas: is required"),
    "min over max": ({"scaling": {"minReplicas": 3, "maxReplicas": 2}}, "3 is greater than maxReplicas 2"),
    "idle without zero": ({"scaling": {"maxReplicas": 2, "idleAfter": "1m"}}, "needs minReplicas 0, which is 1"),
    "idle at once": ({"scaling": {"minReplicas": 0, "maxReplicas": 2, "idleAfter": "0m"}}, "must be longer than 0s"),
    "idle is no duration": ({"scaling": {"maxReplicas": 2, "idleAfter": "soon"}}, "'soon' is no duration"),
    "empty behavior": ({"scaling": {"maxReplicas": 2, "behavior": {}}}, "needs scaleUp or scaleDown"),
    "too many schedules": (
        {"scaling": {"maxReplicas": 2, "schedules": [SCHEDULE] * 17}},
        "spec.scaling.schedules: must be a list of at most 16",
    ),
    "schedules of one name": (
        {"scaling": {"maxReplicas": 2, "schedules": [SCHEDULE, SCHEDULE]}},
        "spec.scaling.schedules: holds the name 'day' twice",
    ),
    "schedule without a name": (
        {"scaling": {"maxReplicas": 2, "schedules": [{"cron": "0 8 * * *"}]}},
        "spec.scaling.schedules[0].name: is required",
    ),
    "schedule without a time": (
        {"scaling": {"maxReplicas": 2, "schedules": [{"name": "day"}]}},
        "spec.scaling.schedules[0].cron: is required",
    ),
    "schedule's min over max": (
        {"scaling": {"maxReplicas": 2, "schedules": [{**SCHEDULE, "minReplicas": 3}]}},
        "3 is greater than maxReplicas 2 while it is in force",
    ),
    "schedule's max under min": (
        {"scaling": {"minReplicas": 5, "maxReplicas": 8, "schedules": [{**SCHEDULE, "maxReplicas": 4}]}},
        "5 is greater than maxReplicas 4 while it is in force",
    ),
    "schedule's zone": (
        {"scaling": {"maxReplicas": 2, "schedules": [{**SCHEDULE, "timeZone": "../etc"}]}},
        "must be like Europe/Berlin",
    ),
    "an autoscaler of another name": (
        {"scaling": {"maxReplicas": 2, "backend": "VPA"}},
        "spec.scaling.backend: is 'VPA', must be one of Auto, HPA, KEDA, BuiltIn",
    ),
    "zero pressure": ({"scaling": {"maxReplicas": 2, "targetPressure": "0"}}, "must be a string greater than 0"),
    "all may be missing": (
        {"disruption": {"maxUnavailable": "101%"}},
        "spec.disruption.maxUnavailable: '101%' must be from 0 to 1000, or a percentage such as 25%",
    ),
    "true may be missing": ({"disruption": {"maxUnavailable": True}}, "spec.disruption.maxUnavailable: True must be"),
    "fewer than none": ({"disruption": {"maxUnavailable": -1}}, "spec.disruption.maxUnavailable: -1 must be"),
    "more than there can be": ({"disruption": {"maxUnavailable": 1001}}, "maxUnavailable: 1001 must be"),
    "what must be there": ({"disruption": {"minAvailable": 1}}, "spec.disruption.minAvailable: unknown field"),
    "tolerations": ({"placement": {"tolerations": ["x"]}}, "must be a list of objects"),
    "node selector": ({"placement": {"nodeSelector": {"a": True}}}, "values must be strings"),
    "affinity": ({"placement": {"affinity": "x"}}, "spec.placement.affinity: must be an object, not a string"),
    "spread": ({"placement": {"topologySpread": "Maybe"}}, "must be one of Soft, Hard, None"),
    "overlay without server": (
        {"podTemplate": {"spec": {"containers": [{"name": "x"}]}}},
        'must list the container "server"',
    ),
    "overlay containers": ({"podTemplate": {"spec": {"containers": "x"}}}, "spec.containers must be a list of objects"),
    "overlay spec is a list": ({"podTemplate": {"spec": []}}, "spec.podTemplate: spec must be an object"),
    "overlay sets command": (
        {"podTemplate": {"spec": {"containers": [{"name": "server", "command": ["x"]}]}}},
        'must not set the command of the container "server"',
    ),
}


@pytest.mark.parametrize(("spec", "sentence"), INVALID.values(), ids=INVALID.keys())
def test_invalid_spec_is_refused_with_field_and_remedy(spec: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecInvalidError) as refused:
        parse_model_deployment(a_manifest(**spec))

    assert sentence in str(refused.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(SpecInvalidError) as refused:
        parse_model_deployment({**a_manifest("Bad_Name", model="x"), "kind": "Deployment", "extra": 1})

    assert [problem.path for problem in refused.value.problems] == [
        "manifest.kind",
        "metadata.name",
        "spec.model",
        "manifest.extra",
    ]


@pytest.mark.parametrize("manifest", [None, [], "x", {"spec": None}, {"metadata": "x"}])
def test_nonsense_is_refused_without_a_crash(manifest: Any) -> None:
    with pytest.raises(SpecInvalidError):
        parse_model_deployment(manifest)


def test_overlay_without_containers_is_taken() -> None:
    overlay = {"metadata": {"annotations": {"a": "b"}}}

    assert a_resource(podTemplate=overlay).spec.pod_template == overlay


def test_empty_quantity_means_unset() -> None:
    assert a_resource(resources={"cpu": "", "memory": None}).spec.resources.memory == ""
