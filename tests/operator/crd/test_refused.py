"""What the API server refuses of a ModelDeployment, with which sentence, and that the operator refuses the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from octavo_operator.api.engine import FIELD_OF_FLAG, RESERVED_FLAGS
from octavo_operator.api.validation import parse_model_deployment
from octavo_operator.errors import SpecInvalidError
from octavo_testing.apiserver import ApiServer
from octavo_testing.crd import create, manifest, open_api_schema

BAD_NAMES = ["1model", "a.b", "a" * 53]
CLAIMS = [{"name": "gpu", "resourceClaimTemplateName": "two-gpus"}]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown scheme": ({"model": "az://bucket/x"}, "model must be hf://"),
    "neither file nor folder": ({"model": "https://host/model"}, "model must be hf://"),
    "a password in the address": ({"model": "https://me:pw@host/m.gguf"}, "model must be hf://"),
    "no path in the bucket": ({"model": "s3://bucket"}, "model must be hf://"),
    "no artifact": ({"model": "oci://registry"}, "model must be hf://"),
    "a Secret for a mounted model": (
        {"model": "pvc://claim", "source": {"secretRef": {"name": "x"}}},
        "for models that are fetched",
    ),
    "a choice in a mounted model": ({"model": "file:///m", "source": {"allow": ["*"]}}, "for models that are fetched"),
    "a key where names say it": (
        {"model": "s3://bucket/x", "source": {"secretRef": {"name": "x", "key": "token"}}},
        "secretRef.key is for hf:// and https://",
    ),
    "checksum": ({"source": {"checksum": "md5:1"}}, "spec.source.checksum"),
    "pattern": ({"source": {"allow": ["a b"]}}, "spec.source.allow[0]"),
    "path with dots": ({"model": "file:///a/../b"}, "must not contain '..'"),
    "both counts": ({"replicas": 1, "scaling": {"maxReplicas": 2}}, "replicas and scaling exclude each other"),
    "min over max": ({"scaling": {"minReplicas": 3, "maxReplicas": 2}}, "minReplicas is greater than maxReplicas"),
    "idle without zero": ({"scaling": {"maxReplicas": 2, "idleAfter": "1m"}}, "needs minReplicas 0"),
    "idle at once": (
        {"scaling": {"minReplicas": 0, "maxReplicas": 2, "idleAfter": "0m"}},
        "idleAfter must be longer than 0s",
    ),
    "schedule's min over max": (
        {"scaling": {"maxReplicas": 2, "schedules": [{"name": "day", "cron": "0 8 * * *", "minReplicas": 3}]}},
        "a schedule's minReplicas is greater than its maxReplicas",
    ),
    "schedule's max under min": (
        {
            "scaling": {
                "minReplicas": 3,
                "maxReplicas": 9,
                "schedules": [{"name": "day", "cron": "0 8 * * *", "maxReplicas": 2}],
            }
        },
        "a schedule's minReplicas is greater than its maxReplicas",
    ),
    "schedules of one name": (
        {"scaling": {"maxReplicas": 2, "schedules": [{"name": "day", "cron": "0 8 * * *"}] * 2}},
        "spec.scaling.schedules[1]: Duplicate value",
    ),
    "schedule without a time": ({"scaling": {"maxReplicas": 2, "schedules": [{"name": "a"}]}}, "schedules[0].cron"),
    "schedule of six fields": (
        {"scaling": {"maxReplicas": 2, "schedules": [{"name": "a", "cron": "0 0 8 * * 1"}]}},
        "spec.scaling.schedules[0].cron",
    ),
    "idle with a schedule that is never zero": (
        {
            "scaling": {
                "maxReplicas": 2,
                "idleAfter": "1m",
                "schedules": [{"name": "a", "cron": "0 8 * * *", "minReplicas": 1}],
            }
        },
        "needs minReplicas 0, here or in a schedule",
    ),
    "an autoscaler of another name": ({"scaling": {"maxReplicas": 2, "backend": "VPA"}}, "spec.scaling.backend"),
    "no maximum": ({"scaling": {"minReplicas": 1}}, "maxReplicas: Required value"),
    "empty behavior": ({"scaling": {"maxReplicas": 2, "behavior": {}}}, "behavior needs scaleUp or scaleDown"),
    "no pressure": ({"scaling": {"maxReplicas": 2, "targetPressure": "0"}}, "spec.scaling.targetPressure"),
    "overlay without server": (
        {"podTemplate": {"spec": {"containers": [{"name": "x"}]}}},
        'must list the container "server"',
    ),
    "overlay sets command": (
        {"podTemplate": {"spec": {"containers": [{"name": "server", "command": ["x"]}]}}},
        'must not set the command of the container "server"',
    ),
    "reserved argument": ({"engine": {"extraArgs": ["--port=1"]}}, "extraArgs may not set --host"),
    "argument of a field": (
        {"engine": {"extraArgs": ["--tensor-parallel-size=2"]}},
        "resources.gpu.count or tensorParallelSize for --tensor-parallel-size",
    ),
    "more GPUs than a node has": ({"resources": {"gpu": {"count": 17}}}, "spec.resources.gpu.count"),
    "two slices of GPUs": (
        {"resources": {"gpu": {"count": 2, "resourceName": "nvidia.com/mig-3g.40gb"}}},
        "slices of GPUs cannot share a model",
    ),
    "a product that is no label": ({"resources": {"gpu": {"product": "NVIDIA H100"}}}, "spec.resources.gpu.product"),
    "a product of no GPU": (
        {"resources": {"gpu": {"count": 0, "product": "NVIDIA-L4"}}},
        "product names a GPU, but count is 0",
    ),
    "a product of who labels nothing": (
        {"resources": {"gpu": {"resourceName": "gpu.intel.com/xe", "product": "Max_1550"}}},
        "product is for GPUs of nvidia.com/ and amd.com/",
    ),
    "two products": (
        {
            "resources": {"gpu": {"product": "NVIDIA-L4"}},
            "placement": {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L40S"}},
        },
        "placement.nodeSelector and resources.gpu.product both say which GPU",
    ),
    "two products of AMD": (
        {
            "resources": {"gpu": {"resourceName": "amd.com/gpu", "product": "a"}},
            "placement": {"nodeSelector": {"amd.com/gpu.product-name": "b"}},
        },
        "placement.nodeSelector and resources.gpu.product both say which GPU",
    ),
    "claims without a GPU": (
        {"resources": {"gpu": {"count": 0, "claims": CLAIMS}}},
        "claims ask for devices, but count is 0",
    ),
    "claims of a product": (
        {"resources": {"gpu": {"product": "NVIDIA-L4", "claims": CLAIMS}}},
        "of claims the DeviceClass and its selectors choose the product",
    ),
    "claims of slices": (
        {"resources": {"gpu": {"resourceName": "nvidia.com/mig-1g.10gb", "claims": CLAIMS}}},
        "beside claims resourceName says whose GPUs they are",
    ),
    "a claim twice": (
        {"resources": {"gpu": {"claims": [*CLAIMS, *CLAIMS]}}},
        "spec.resources.gpu.claims[1]: Duplicate",
    ),
    "a claim of nothing": (
        {"resources": {"gpu": {"claims": [{"name": "gpu"}]}}},
        "claims[0].resourceClaimTemplateName: Required",
    ),
    "a claim without a name": (
        {"resources": {"gpu": {"claims": [{"resourceClaimTemplateName": "x"}]}}},
        "claims[0].name: Required",
    ),
    "a claim that is there already": (
        {"resources": {"gpu": {"claims": [{"name": "gpu", "resourceClaimName": "x"}]}}},
        'unknown field "spec.resources.gpu.claims[0].resourceClaimName"',
    ),
    "memory": ({"resources": {"memory": "lots"}}, "spec.resources.memory"),
    "duration": ({"drain": {"timeout": "soon"}}, "spec.drain.timeout"),
    "utilization": ({"engine": {"gpuMemoryUtilization": "1.5"}}, "spec.engine.gpuMemoryUtilization"),
    "strategy": ({"routing": {"strategy": "Random"}}, "spec.routing.strategy"),
    "routing tag": ({"engine": {"extraArgs": ["--routing-tag=a/b/c"]}}, "extraArgs may not set --host"),
    "keys from nowhere": ({"access": {"keysFrom": [{}]}}, "spec.access.keysFrom[0].secretRef"),
    "keys by value": ({"access": {"keysFrom": [{"secretRef": {"name": "a"}, "key": "sk"}]}}, "unknown field"),
    "a quota of nobody": ({"access": {"tokensPerMinute": 5}}, "count per key and need keysFrom"),
    "a day of nobody": ({"access": {"tokensPerDay": 5, "keysFrom": []}}, "count per key and need keysFrom"),
    "audit": ({"access": {"audit": "Some"}}, "spec.access.audit"),
    "less than no tokens": ({"access": {"tokensPerDay": -1}}, "spec.access.tokensPerDay"),
    "no name of a Secret": ({"access": {"keysFrom": [{"secretRef": {"name": "A/B"}}]}}, "secretRef.name"),
    "rollout strategy": ({"rollout": {"strategy": "RollingUpdate"}}, "spec.rollout.strategy"),
    "hold": ({"rollout": {"maxHold": "soon"}}, "spec.rollout.maxHold"),
    "window without cron": (
        {"rollout": {"when": {"policy": "Window", "duration": "1h"}}},
        "policy Window needs cron and duration",
    ),
    "window of no length": (
        {"rollout": {"when": {"policy": "Window", "cron": "0 2 * * *", "duration": "0s"}}},
        "policy Window needs cron and duration",
    ),
    "cron without window": (
        {"rollout": {"when": {"policy": "Idle", "cron": "0 2 * * *"}}},
        "cron, duration and timeZone are for policy Window",
    ),
    "cron of four fields": (
        {"rollout": {"when": {"policy": "Window", "cron": "0 2 * *", "duration": "1h"}}},
        "spec.rollout.when.cron",
    ),
    "prompt without answer": ({"rollout": {"gate": {"prompts": [{"prompt": "x"}]}}}, "prompts[0].expect: Required"),
    "ratio of nothing": ({"rollout": {"gate": {"minThroughputRatio": "0"}}}, "spec.rollout.gate.minThroughputRatio"),
    "query without limit": (
        {"rollout": {"gate": {"query": {"prometheus": "http://p:9090", "expr": "up"}}}},
        "spec.rollout.gate.query.max: Required",
    ),
    "query with a password": (
        {"rollout": {"gate": {"query": {"prometheus": "http://a:b@p", "expr": "up", "max": "1"}}}},
        "spec.rollout.gate.query.prometheus",
    ),
    "upgrade": ({"rollout": {"operatorUpgrade": "Never"}}, "spec.rollout.operatorUpgrade"),
    "fewer than none": ({"disruption": {"maxUnavailable": -1}}, "spec.disruption.maxUnavailable"),
    "a number as text": ({"disruption": {"maxUnavailable": "2"}}, "spec.disruption.maxUnavailable"),
    "more than all": ({"disruption": {"maxUnavailable": "101%"}}, "spec.disruption.maxUnavailable"),
    "what must be there": ({"disruption": {"minAvailable": 1}}, 'unknown field "spec.disruption.minAvailable"'),
    "names twice": ({"servedNames": ["a", "a"]}, "Duplicate value"),
    "strange field": ({"adapter": []}, 'unknown field "spec.adapter"'),
    "adapters": ({"adapters": [{"name": "sql", "uri": "hf://org/sql"}]}, "adapters are not served yet; merge"),
    "quantization of a later version": ({"engine": {"quantization": "awq"}}, "not served yet, int8, int4 and fp8 are"),
    "quantization of nobody": ({"engine": {"quantization": "int3"}}, "spec.engine.quantization: Unsupported value"),
    "a small K/V cache": (
        {"engine": {"kvCacheDtype": "int8"}},
        "kvCacheDtype int8 is not served yet; use fp8, or auto",
    ),
    "a K/V cache of nobody": ({"engine": {"kvCacheDtype": "fp7"}}, "spec.engine.kvCacheDtype: Unsupported value"),
    "a guess": ({"engine": {"speculative": {"method": "ngram"}}}, "speculative is not served yet; leave it out"),
    "half a guess": ({"engine": {"speculative": {"numTokens": 4}}}, "speculative is not served yet; leave it out"),
    "a small model": ({"engine": {"speculative": {"model": "hf://org/s"}}}, "speculative is not served yet"),
    "fewer ranks than GPUs": (
        {"engine": {"tensorParallelSize": 2}, "resources": {"gpu": {"count": 4}}},
        "spec.engine.tensorParallelSize: Invalid value: tensorParallelSize is not resources.gpu.count",
    ),
    "more ranks than the one GPU of a default": (
        {"engine": {"tensorParallelSize": 2}, "resources": {"memory": "1Gi"}},
        "tensorParallelSize is not resources.gpu.count",
    ),
    "an inference pool": ({"routing": {"inferencePool": True}}, "inferencePool is not served yet; leave it false"),
    "claim without size": ({"cache": {"type": "PVC"}}, "cache.size is required for a PersistentVolumeClaim"),
    "class without size": ({"cache": {"storageClassName": "nfs"}}, "cache.size is required"),
    "local volumes of no class": ({"cache": {"type": "NodeLocal", "size": "1Gi"}}, "required for NodeLocal"),
    "size of nothing": ({"cache": {"size": "1Gi"}}, "are for PVC and NodeLocal"),
    "class of nothing": ({"cache": {"type": "None", "storageClassName": "a"}}, "are for PVC and NodeLocal"),
    "access to nothing": ({"cache": {"accessMode": "ReadWriteOnce"}}, "cache.accessMode is for PVC"),
    "zero bytes": ({"cache": {"type": "PVC", "size": "lots"}}, "spec.cache.size"),
    "a kind of cache": ({"cache": {"type": "Disk"}}, "spec.cache.type"),
    "a cache of what is mounted": (
        {"model": "pvc://claim", "cache": {"type": "PVC", "size": "1Gi"}},
        "cache is for models that are fetched",
    ),
    "an image of the hub": ({"cache": {"type": "Image"}}, "model must be oci://"),
    "an image with a checksum": (
        {"model": "oci://r/m", "cache": {"type": "Image"}, "source": {"checksum": "sha256:" + "a" * 64}},
        "source must be unset",
    ),
}


@pytest.mark.parametrize(("spec", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_api_server_refuses_with_a_sentence(clean: ApiServer, spec: dict[str, Any], words: str) -> None:
    answer = create(clean, manifest(**spec))

    assert answer.status in (400, 422)
    assert words in answer.message
    assert re.search(r"\bspec\.?[\w.\[\]]*", answer.message), "names no field"


@pytest.mark.parametrize("spec", [spec for spec, _ in REFUSED.values()], ids=REFUSED.keys())
def test_local_mode_refuses_the_same(spec: dict[str, Any]) -> None:
    with pytest.raises(SpecInvalidError):
        parse_model_deployment(manifest(**spec), creating=True)


@pytest.mark.parametrize("written", ["{}=1", "{}", "{} 1"])
@pytest.mark.parametrize("flag", [*RESERVED_FLAGS, *FIELD_OF_FLAG])
def test_an_argument_that_is_set_elsewhere_is_refused_however_it_is_written(
    clean: ApiServer, flag: str, written: str
) -> None:
    body = manifest(engine={"extraArgs": ["--seed", written.format(flag)]})

    answer = create(clean, body)

    assert answer.status == 422
    assert "spec.engine.extraArgs: Invalid value: extraArgs may not set" in " ".join(answer.message.split())
    with pytest.raises(SpecInvalidError, match=f"spec.engine.extraArgs: may not set {flag}[:;] "):
        parse_model_deployment(body)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_name_that_cannot_be_a_service_is_refused(clean: ApiServer, name: str) -> None:
    assert create(clean, manifest(name)).status == 422


def test_every_rule_of_the_schema_refuses_one_of_at_least_forty(clean: ApiServer) -> None:
    rules = {" ".join(rule["message"].split()) for rule in _rules(open_api_schema())}

    said = "\n".join(create(clean, manifest(**spec)).message for spec, _ in REFUSED.values())
    said += "".join(create(clean, manifest(name)).message for name in BAD_NAMES)

    assert len(REFUSED) >= 40
    assert len(rules) >= 15
    assert {rule for rule in rules if rule not in " ".join(said.split())} == set()


def _rules(schema: Any) -> Iterator[dict[str, str]]:
    """All CEL rules, however deep."""
    if isinstance(schema, dict):
        yield from schema.get("x-kubernetes-validations", ())
    for below in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _rules(below)
