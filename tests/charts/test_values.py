"""Values: each known, each described by the schema, no other accepted."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

CHART = Path(__file__).parents[2] / "charts" / "octavo"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


def objects(schema: object, path: str = ""):
    """Every object schema with properties, by its path."""
    if isinstance(schema, dict):
        if "properties" in schema:
            yield path, schema
        for key, value in schema.items():
            yield from objects(value, f"{path}/{key}")
    elif isinstance(schema, list):
        for number, value in enumerate(schema):
            yield from objects(value, f"{path}/{number}")


def resolve(schema: dict) -> dict:
    return SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def known_paths(schema: dict, prefix: str = "") -> set[str]:
    """Paths of all values that a user may set, down to what is as in Kubernetes."""
    found = set()
    for name, child in schema["properties"].items():
        child = resolve(child)
        deeper = child if child.get("additionalProperties") is False and name not in AS_IN_KUBERNETES else None
        found |= known_paths(deeper, f"{prefix}{name}.") if deeper else {f"{prefix}{name}"}
    return found


AS_IN_KUBERNETES = {"resources", "affinity", "podSecurityContext", "securityContext", "labels"}


def given_paths(values: dict, prefix: str = "") -> set[str]:
    found = set()
    for name, child in values.items():
        deeper = isinstance(child, dict) and child and name not in AS_IN_KUBERNETES
        found |= given_paths(child, f"{prefix}{name}.") if deeper else {f"{prefix}{name}"}
    return found


def test_the_schema_itself_is_one():
    jsonschema.Draft7Validator.check_schema(SCHEMA)


def test_no_object_takes_an_unknown_key():
    """A volume's second key is its type, whose own fields Kubernetes checks."""
    open_ones = {path for path, schema in objects(SCHEMA) if schema.get("additionalProperties") is not False}

    assert open_ones == {"/definitions/volumes/items"}


def test_values_and_schema_name_the_same_things():
    assert given_paths(VALUES) == known_paths(SCHEMA) - {"global"}


def test_the_defaults_are_valid():
    jsonschema.validate(VALUES, SCHEMA)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("nameOverride=My_Octavo", "/nameOverride"),
        ("replicas=2", "additional properties 'replicas' not allowed"),
        ("gateway.replica=2", "additional properties 'replica' not allowed"),
        ("gateway.service.ports=2", "additional properties 'ports' not allowed"),
        ("operator.replicas=0", "/operator/replicas"),
        ("operator.extraEnv[0].val=x", "/operator/extraEnv/0"),
        ("gateway.extraVolumeMounts[0].name=x", "missing property 'mountPath'"),
        ("gateway.extraVolumes[0].name=x", "/gateway/extraVolumes/0"),
        ("metricsAdapter.enabled=maybe", "'auto', true, false"),
        ("logLevel=trace", "/logLevel"),
        ("images.server.digest=abc", "/images/server/digest"),
        ("images.server.repository=a:1", "/images/server/repository"),
        ("images.server.pullPolicy=Always", "additional properties 'pullPolicy' not allowed"),
        ("gateway.extraArgs[0]=verbose", "/gateway/extraArgs/0"),
        ("namespaces[0]=Team_A", "/namespaces/0"),
        ("gateway.url=llm.example.com", "/gateway/url"),
        ("monitoring.monitors.kind=podMonitor", "'None', 'PodMonitor', 'ServiceMonitor'"),
        ("monitoring.monitors.interval=15", "/monitoring/monitors/interval"),
        ("monitoring.rules.disabledAlerts[0]=KubeDown", "/monitoring/rules/disabledAlerts/0"),
        ("networkPolicies.clients[0].pods=x", "additional properties 'pods' not allowed"),
        ("networkPolicies.egress.apiServerPorts[0]=0", "/networkPolicies/egress/apiServerPorts/0"),
        ("ingress.hosts[0]=https://x", "/ingress/hosts/0"),
        ("httpRoute.parentRefs[0].namespace=x", "missing property 'name'"),
        ("httpRoute.requestTimeout=10", "/httpRoute/requestTimeout"),
        ("gateway.service.nodePort=30080", "needs gateway.service.type NodePort or LoadBalancer"),
        ("networkPolicies.egress.enabled=true", "need networkPolicies.enabled"),
        ("networkPolicies.serverEgress.enabled=true", "need networkPolicies.enabled"),
        ("networkPolicies.clients[0].podSelector.matchLabels.a=b", "need networkPolicies.enabled"),
        ("keda.enabled=true", "keda.enabled needs prometheus.address"),
        ("httpRoute.enabled=true", "httpRoute.enabled needs httpRoute.parentRefs"),
        ("securityContext.privileged=true", "additional properties 'privileged' not allowed"),
    ],
)
def test_a_wrong_value_is_refused_by_name(helm, setting, said):
    result = helm("template", "octavo", str(CHART), "--set", setting, check=False)

    assert result.returncode != 0
    assert said in result.stderr
