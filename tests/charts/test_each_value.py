"""Each value of the chart set to another: something of what is rendered changes, and the API server takes all that does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo_testing.apiserver import ApiServer, skipping_without_binaries
from octavo_testing.chart import install_optional_kinds, path_of

SCHEMA = json.loads((Path(__file__).parents[2] / "charts" / "octavo" / "values.schema.json").read_text())
DIGEST = "sha256:" + "b" * 64
PEERS = [{"podSelector": {"matchLabels": {"app": "x"}}}]
RULES = [{"ports": [{"port": 1234}]}]

OF_PODS: dict[str, Any] = {
    "replicas": 4,
    "command": ["sh", "-c", "exit"],
    "extraArgs": ["--log-level=debug"],
    "extraEnv": [{"name": "A", "value": "b"}],
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "tmp", "mountPath": "/more"}],
    "resources": {"limits": {"memory": "1Gi"}},
    "serviceAccount.annotations": {"a": "b"},
    "podAnnotations": {"a": "b"},
    "podLabels": {"a": "b"},
    "nodeSelector": {"a": "b"},
    "tolerations": [{"key": "a", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "high",
}
OTHERS: dict[str, Any] = {
    "nameOverride": "other",
    "fullnameOverride": "other",
    "crds.install": False,
    "namespaces": ["team"],
    "secretNamespaces": ["team"],
    "logLevel": "debug",
    "logFormat": "text",
    "imagePullSecrets": [{"name": "regcred"}],
    **{
        f"images.{name}.{field}": {"repository": "r.example/x", "tag": "9", "digest": DIGEST}[field]
        for name in ("operator", "gateway", "server", "serverCPU", "serverROCm")
        for field in ("repository", "tag", "digest")
    },
    "images.operator.pullPolicy": "Always",
    "images.gateway.pullPolicy": "Always",
    "server.imagePullPolicy": "Never",
    "server.imagePullSecrets": ["regcred"],
    **{f"{component}.{name}": value for component in ("operator", "gateway") for name, value in OF_PODS.items()},
    "gateway.url": "https://other.example.com",
    "gateway.tls.secretName": "certificate",
    "gateway.shutdownTimeoutSeconds": 7,
    "gateway.service.type": "LoadBalancer",
    "gateway.service.port": 80,
    "gateway.service.nodePort": 30080,
    "gateway.service.annotations": {"a": "b"},
    "metricsAdapter.enabled": False,
    "keda.enabled": False,
    "prometheus.address": "http://other:9090",
    "monitoring.monitors.kind": "ServiceMonitor",
    "monitoring.monitors.labels": {"a": "b"},
    "monitoring.monitors.interval": "7s",
    "monitoring.rules.enabled": False,
    "monitoring.rules.labels": {"a": "b"},
    "monitoring.rules.disabledAlerts": ["OctavoMetricsAdapterDown"],
    "monitoring.dashboards.enabled": False,
    "monitoring.dashboards.labels": {"a": "b"},
    "monitoring.dashboards.annotations": {"a": "b"},
    "networkPolicies.enabled": False,
    "networkPolicies.clients": PEERS,
    "networkPolicies.metricsFrom": PEERS,
    "networkPolicies.serverEgress.enabled": False,
    "networkPolicies.serverEgress.extra": RULES,
    "networkPolicies.egress.enabled": False,
    "networkPolicies.egress.apiServerPorts": [16443],
    "networkPolicies.egress.extra": RULES,
    "ingress.enabled": False,
    "ingress.className": "other",
    "ingress.annotations": {"a": "b"},
    "ingress.hosts": ["other.example.com"],
    "ingress.tlsSecretName": "other",
    "httpRoute.enabled": False,
    "httpRoute.parentRefs": [{"name": "other"}],
    "httpRoute.hostnames": ["other.example.com"],
    "httpRoute.annotations": {"a": "b"},
    "httpRoute.requestTimeout": "60s",
    "podSecurityContext": {"runAsUser": None},
    "securityContext": {"readOnlyRootFilesystem": False},
    "test.command": ["python3"],
}


def known_paths(schema: dict[str, Any], prefix: str = "") -> set[str]:
    """Down to what OTHERS sets as a whole."""
    if f"{prefix}"[:-1] in OTHERS or "properties" not in schema:
        return {prefix[:-1]}
    found: set[str] = set()
    for name, child in schema["properties"].items():
        child = SCHEMA["definitions"][child["$ref"].rpartition("/")[2]] if "$ref" in child else child
        found |= known_paths(child, f"{prefix}{name}.")
    return found


def with_value(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    name, _, rest = path.partition(".")
    return {**values, name: with_value(values.get(name, {}), rest, value) if rest else value}


@pytest.fixture
def all_on(everything: dict[str, Any]) -> dict[str, Any]:
    """So that no value stands beside an option that is off."""
    on = {"keda": {"enabled": True}, "prometheus": {"address": "http://p:9090"}}
    return with_value({**everything, **on}, "gateway.service.type", "NodePort")


def test_every_value_is_tried() -> None:
    assert set(OTHERS) == known_paths(SCHEMA) - {"global"}


@pytest.fixture(scope="module")
def with_all_kinds(server: ApiServer) -> ApiServer:
    with skipping_without_binaries():
        install_optional_kinds(server)
    server.request("POST", "/api/v1/namespaces", {"metadata": {"name": "team"}})
    return server


NEED_IT = {"enabled": False, "clients": [], "egress": {"enabled": False}, "serverEgress": {"enabled": False}}
"""What is set with networkPolicies.enabled is refused without it."""


@pytest.mark.parametrize("path", OTHERS)
def test_another_value_changes_what_is_rendered_into_what_the_api_server_takes(
    path: str, with_all_kinds: ApiServer, render: Any, all_on: dict[str, Any]
) -> None:
    other = with_value(all_on, path, OTHERS[path])
    if path == "networkPolicies.enabled":
        other = {**all_on, "networkPolicies": NEED_IT}
    before, after = render(all_on), render(other)

    changed = [each for each in after if each not in before]
    gone = [each for each in before if each not in after]
    assert changed or gone
    for manifest in changed:
        url = f"{path_of(manifest)}/{manifest['metadata']['name']}"
        query = "?dryRun=All&fieldValidation=Strict&fieldManager=helm&force=true"
        answer = with_all_kinds.request("PATCH", url + query, manifest, content_type="application/apply-patch+yaml")
        assert answer.status in (200, 201), f"{manifest['kind']} {manifest['metadata']['name']}: {answer.message}"
