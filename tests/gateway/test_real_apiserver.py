"""The gateway's Kubernetes side against a real kube-apiserver: list, watch, and a wake that cannot undo another's write."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from octavo_gateway.endpoints import RoutingTable
from octavo_gateway.errors import KubeApiError
from octavo_gateway.kube_source import KubeApiTransport, KubeSource
from octavo_gateway.metrics import Metrics
from octavo_testing.apiserver import ApiServer, apiserver_with_crd
from octavo_testing.gateway import until

DEPLOYMENTS = "/apis/octavo.dev/v1alpha1/namespaces/default/modeldeployments"
PODS = "/api/v1/namespaces/default/pods"
MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with apiserver_with_crd() as server:
        yield server


@contextlib.asynccontextmanager
async def a_watching_source(server: ApiServer) -> AsyncIterator[tuple[KubeSource, list[RoutingTable]]]:
    tables: list[RoutingTable] = []
    transport = await KubeApiTransport.open(str(server.kubeconfig))
    source = KubeSource(transport, tables.append, Metrics())
    task = asyncio.create_task(source.run())
    try:
        await until(lambda: bool(tables) and tables[-1].is_complete, within_s=20)
        yield source, tables
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await transport.close()
        # A cut TLS stream says goodbye first; a loop that ends before leaves its socket to the collector.
        selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
        await until(lambda: len(selector.get_map()) == 1)


async def call(server: ApiServer, method: str, path: str, body: Any = None, **options: Any) -> Any:
    answer = await asyncio.to_thread(server.request, method, path, body, **options)
    assert answer.status < 300, answer.message
    return answer.body


async def a_sleeping_model(server: ApiServer, name: str) -> None:
    manifest = {
        "apiVersion": "octavo.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name},
        "spec": {"model": "hf://a/b", "scaling": {"minReplicas": 0, "maxReplicas": 4}},
    }
    await call(server, "POST", DEPLOYMENTS, manifest)
    await set_replicas(server, name, 0)


async def set_replicas(server: ApiServer, name: str, replicas: int) -> None:
    await call(server, "PATCH", f"{DEPLOYMENTS}/{name}", {"spec": {"replicas": replicas}}, content_type=MERGE)


async def replicas_of(server: ApiServer, name: str) -> int:
    return int((await call(server, "GET", f"{DEPLOYMENTS}/{name}"))["spec"]["replicas"])


async def test_a_sleeping_model_is_seen_and_woken(server: ApiServer) -> None:
    async with a_watching_source(server) as (source, tables):
        await a_sleeping_model(server, "sleeper")
        await until(lambda: "default/sleeper" in tables[-1].models and tables[-1].models["default/sleeper"].needs_wake)

        await source.wake(tables[-1].models["default/sleeper"])

        await until(lambda: not tables[-1].models["default/sleeper"].needs_wake)
    assert await replicas_of(server, "sleeper") == 1


async def test_a_wake_that_comes_late_does_not_undo_what_the_autoscaler_wrote(server: ApiServer) -> None:
    """Between the gateway's reading and its write somebody scaled to 3: 1 would be a scale-down."""
    async with a_watching_source(server) as (source, tables):
        await a_sleeping_model(server, "raced")
        await until(lambda: "default/raced" in tables[-1].models and tables[-1].models["default/raced"].needs_wake)
        seen = tables[-1].models["default/raced"]
        await set_replicas(server, "raced", 3)

        with pytest.raises(KubeApiError) as refused:
            await source.wake(seen)

    assert refused.value.status == 409
    assert await replicas_of(server, "raced") == 3


async def test_pods_come_and_go_by_their_label_alone(server: ApiServer) -> None:
    labels = {
        "app.kubernetes.io/managed-by": "octavo",
        "app.kubernetes.io/component": "server",
        "octavo.dev/modeldeployment": "podded",
    }

    def a_pod(name: str, labels: dict[str, str]) -> dict[str, Any]:
        containers = [{"name": "server", "image": "x", "ports": [{"name": "http", "containerPort": 8000}]}]
        return {"metadata": {"name": name, "labels": labels}, "spec": {"containers": containers}}

    ready = {"phase": "Running", "podIP": "10.1.2.3", "conditions": [{"type": "Ready", "status": "True"}]}
    async with a_watching_source(server) as (_, tables):
        await a_sleeping_model(server, "podded")
        for name, given in (("mine", labels), ("other", {"octavo.dev/modeldeployment": "podded"})):
            await call(server, "POST", PODS, a_pod(name, given))
            await call(server, "PATCH", f"{PODS}/{name}/status", {"status": ready}, content_type=MERGE)

        def replicas() -> list[tuple[str, bool]]:
            model = tables[-1].models.get("default/podded")
            return [(replica.pod, replica.is_routable) for replica in model.replicas] if model else []

        await until(lambda: replicas() == [("mine", True)])
        await call(server, "DELETE", f"{PODS}/mine", {"gracePeriodSeconds": 0})
        await until(lambda: replicas() == [])


async def test_a_deleted_model_leaves_the_table(server: ApiServer) -> None:
    async with a_watching_source(server) as (_, tables):
        await a_sleeping_model(server, "shortlived")
        await until(lambda: "default/shortlived" in tables[-1].models)
        await call(server, "DELETE", f"{DEPLOYMENTS}/shortlived")
        await until(lambda: "default/shortlived" not in tables[-1].models)
