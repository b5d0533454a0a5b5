"""The chart's objects on a real kube-apiserver: accepted as they are, and enough for the adapter to be aggregated.

The adapter runs in this process with the token of the chart's own service account, so every right that it lacks shows.
No kubelet: its Service leads to this host by name (ExternalName), as an API server without a cluster network wants.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from octavo_operator.config import parse_config
from octavo_operator.kube.adapter_access import KubeAdapterAccess
from octavo_operator.kube.client import KubeClient
from octavo_operator.metrics_adapter.lifecycle import AdapterSettings, MetricsAdapter
from octavo_operator.metrics_adapter.store import MetricsStore
from octavo_testing.adapter import a_load, a_pod
from octavo_testing.apiserver import ADMIN_TOKEN, ApiServer, free_ports, skipping_without_binaries
from octavo_testing.chart import (
    PATHS,
    add_account,
    install_optional_kinds,
    install_rights,
    kubeconfig_of,
    path_of,
    token_of,
)

METRIC = "octavo_kv_pressure_ratio"
VALUES = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/pods/%2A/" + METRIC
SELECTOR = "?labelSelector=octavo.dev%2Fmodeldeployment%3Dqwen"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"operator": {"replicas": 2}, "gateway": {"service": {"type": "NodePort", "nodePort": 30080}}},
        {"namespaces": ["sys"], "images": {"gateway": {"repository": "x/y", "digest": "sha256:" + "a" * 64}}},
    ],
    ids=str,
)
def test_every_object_is_accepted_with_strict_field_validation(server, render, values):
    accept_all(server, render(values, release="dry"))


@pytest.mark.parametrize("kind", ["PodMonitor", "ServiceMonitor"])
def test_every_object_of_every_option_is_accepted_too(server, render, everything, kind):
    """Against the CustomResourceDefinitions of the Prometheus operator and the Gateway API."""
    with skipping_without_binaries():
        install_optional_kinds(server)
    monitoring = {**everything["monitoring"], "monitors": {"kind": kind, "labels": {"release": "prom"}}}
    rendered = render({**everything, "monitoring": monitoring}, release="dry")

    assert {kind, "PrometheusRule", "HTTPRoute", "Ingress", "NetworkPolicy"} <= {each["kind"] for each in rendered}
    accept_all(server, rendered)


def accept_all(server: ApiServer, manifests: list[dict[str, Any]]) -> None:
    for manifest in manifests:
        path = f"{path_of(manifest)}/{manifest['metadata']['name']}"
        query = "?dryRun=All&fieldValidation=Strict&fieldManager=helm&force=true"
        answer = server.request("PATCH", path + query, manifest, content_type="application/apply-patch+yaml")
        assert answer.status in (200, 201), f"{manifest['kind']} {manifest['metadata']['name']}: {answer.message}"


def test_every_pod_is_admitted_where_pod_security_restricted_is_enforced(server, render):
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    server.request("POST", "/api/v1/namespaces", {"metadata": {"name": "strict", "labels": labels}})
    rendered = render()
    pods = [(each["metadata"]["name"], each["spec"]["template"]["spec"]) for each in rendered.of("Deployment")]
    pods += [(each["metadata"]["name"], each["spec"]) for each in rendered.of("Pod")]

    for name, spec in pods:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        answer = server.request("POST", PATHS["Pod"].format(namespace="strict") + "?dryRun=All", pod)
        assert answer.status == 201, answer.message


@pytest.fixture
def installed(server, render) -> ApiServer:
    """The chart's rights in place, and three accounts that ask for metrics."""
    install_rights(server, render())
    service = {"metadata": {"name": "octavo-metrics-adapter"}}
    service["spec"] = {"type": "ExternalName", "externalName": "localhost"}
    assert server.request("POST", PATHS["Service"].format(namespace="sys"), service).status == 201
    for namespace, name in (("kube-system", "horizontal-pod-autoscaler"), ("default", "nobody"), ("default", "reader")):
        add_account(server, namespace, name)
    binding = {
        "metadata": {"name": "reader"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "sys-octavo-metrics-reader",
        },
        "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": "default"}],
    }
    assert server.request("POST", PATHS["RoleBinding"].format(namespace="default"), binding).status == 201
    return server


@contextlib.asynccontextmanager
async def running_adapter(server: ApiServer, settings: AdapterSettings, folder: Path):
    """The adapter as the operator runs it, with two pods of 3.2 and 0.85."""
    store, pods = MetricsStore(fresh_for_s=600), [a_pod("qwen-1"), a_pod("qwen-2")]
    for pod, pressure in zip(pods, (3.2, 0.85), strict=True):
        store.put(pod.uid, a_load(pressure, at=time.time()))
    async with KubeClient.connect(kubeconfig_of(server, folder, "sys", "octavo-operator")) as kube:
        adapter = MetricsAdapter(settings, kube=KubeAdapterAccess(kube), store=store, list_pods=lambda: pods)
        task = asyncio.create_task(adapter.run())
        try:
            await until(lambda: adapter.announcement == "ours" or adapter.troubles)
            assert adapter.troubles == {}
            yield adapter
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def until(is_so: Callable[[], Any], *, within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not await asyncio.to_thread(is_so):
            await asyncio.sleep(0.2)


def is_available(server: ApiServer, version: str) -> bool:
    path = f"/apis/apiregistration.k8s.io/v1/apiservices/{version}.custom.metrics.k8s.io"
    conditions = server.request("GET", path).body.get("status", {}).get("conditions", [])
    return any(each["type"] == "Available" and each["status"] == "True" for each in conditions)


async def test_the_adapter_is_aggregated_with_exactly_the_charts_rights(installed, render, tmp_path):
    """From the chart's rights to what an HPA reads: certificate, announcement, discovery, values, refusals, revocation."""
    server, (port,) = installed, free_ports(1)
    settings = parse_config(render().container("operator")["args"], {}).adapter
    settings = replace(settings, host="127.0.0.1", port=port, service=replace(settings.service, port=port))
    hpa = token_of(server, "kube-system", "horizontal-pod-autoscaler")
    nobody, reader = token_of(server, "default", "nobody"), token_of(server, "default", "reader")

    async def ask(path: str, token: str) -> tuple[int, dict[str, Any]]:
        answer = await asyncio.to_thread(server.request, "GET", path, token=token)
        return answer.status, answer.body

    async with running_adapter(server, settings, tmp_path), direct(port) as at_adapter:
        for version in ("v1beta2", "v1beta1"):
            await until(lambda version=version: is_available(server, version))

        status, document = await ask(VALUES + SELECTOR, hpa)
        assert (status, [item["value"] for item in document["items"]]) == (200, ["3200m", "850m"])
        assert (await ask(VALUES.replace("beta2", "beta1"), hpa))[1]["items"][0]["metricName"] == METRIC
        assert (await ask(VALUES, nobody))[0] == 403
        status, document = await ask(VALUES.replace("%2A", "gone"), hpa)
        assert (status, document["reason"]) == (404, "NotFound")

        status, document = await ask("/apis/custom.metrics.k8s.io/v1beta2", nobody)
        assert (status, len(document["resources"])) == (200, 2)
        await until(lambda: "custom.metrics.k8s.io" in aggregated_groups(server))

        # Past the API server: the adapter reviews tokens and rights itself.
        assert await at_adapter(VALUES, hpa) == 200
        assert await at_adapter(VALUES, reader) == 200
        assert await at_adapter(VALUES.replace("default", "other"), reader) == 403
        assert await at_adapter(VALUES, nobody) == 403
        assert await at_adapter(VALUES, "forged") == 401
        assert await at_adapter(VALUES, None, {"X-Remote-User": "admin", "X-Remote-Group": "system:masters"}) == 401

        # The HPA controller has the right by a role of Kubernetes' own too, so another one loses it here.
        server.request("DELETE", PATHS["RoleBinding"].format(namespace="default") + "/reader")
        async with asyncio.timeout(12):
            while await at_adapter(VALUES, reader) != 403:
                await asyncio.sleep(0.5)


@contextlib.asynccontextmanager
async def direct(port: int):
    """Asks the adapter itself, with a token or with headers that only a front proxy may send."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:

        async def ask(path: str, token: str | None, headers: dict[str, str] | None = None) -> int:
            sent = {**(headers or {}), **({"Authorization": f"Bearer {token}"} if token else {})}
            async with session.get(f"https://127.0.0.1:{port}{path}", headers=sent) as response:
                return response.status

        yield ask


def aggregated_groups(server: ApiServer) -> set[str]:
    """Groups with fresh resources in the discovery that kubectl and the HPA controller read."""
    accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Accept": accept}
    request = urllib.request.Request(f"{server.url}/apis", headers=headers)
    context = ssl.create_default_context(cafile=str(server.ca_file))
    with urllib.request.urlopen(request, context=context, timeout=10) as response:
        groups = json.load(response)["items"]
    return {
        group["metadata"]["name"]
        for group in groups
        for version in group["versions"]
        if version.get("freshness") == "Current" and version.get("resources")
    }
