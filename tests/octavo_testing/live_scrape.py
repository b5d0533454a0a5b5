"""What Prometheus would read of a server, a gateway and an operator that really run, against a real API server.

The server is the real one over the fake model; operator and gateways are processes. Whatever counts only when something
goes wrong is made to go wrong: a replica that is gone, a quota, a gateway without rights, a request that must wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from octavo_testing.apiserver import ApiServer, free_ports
from octavo_testing.chart import add_account, kubeconfig_of
from octavo_testing.operator_process import OPERATOR_PATH, Namespace, until
from octavo_testing.server import fake_server

NAMESPACE = "live"
FULL_NAMESPACE = "live-full"
OF_SERVERS = {"namespace": NAMESPACE, "modeldeployment": "tiny", "revision": "r"}
"""What the monitors' relabelling and the Prometheus operator add."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series at one moment."""

    name: str
    labels: dict[str, str]
    value: float
    is_counter: bool
    """Of a counter or a histogram, so that it only grows."""


@dataclass(frozen=True, slots=True)
class Target:
    """One address to scrape, with the labels that the chart's monitors and the Prometheus operator give it."""

    url: str
    labels: dict[str, str]

    async def scrape(self, http: aiohttp.ClientSession) -> list[Series]:
        async with http.get(f"{self.url}/metrics") as response:
            assert response.status == 200
            text = await response.text()
        return [
            Series(sample.name, {**sample.labels, **self.labels}, sample.value, family.type in ("counter", "histogram"))
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not sample.name.endswith("_created")
        ]


async def scrape_everything(apiserver: ApiServer, tokenizer: Path, folder: Path) -> list[Series]:
    """All series after requests that were answered, failed and held."""
    namespace, port, internal, poor_port, poor_internal, operator_port = Namespace(apiserver, NAMESPACE), *free_ports(5)
    admin = f"--kubeconfig={apiserver.kubeconfig}"
    add_account(apiserver, "default", "without-rights")
    poor = f"--kubeconfig={kubeconfig_of(apiserver, folder, 'default', 'without-rights')}"
    timeout = aiohttp.ClientTimeout(total=60)
    async with fake_server(tokenizer) as replica, aiohttp.ClientSession(timeout=timeout) as http:
        replica.state.metrics.record_startup("loading_weights", 0.1)
        with (
            _process("octavo_operator", folder, admin, f"--port={operator_port}", "--metrics-adapter=false"),
            _process("octavo_gateway", folder, admin, f"--port={port}", f"--internal-port={internal}"),
            _process("octavo_gateway", folder, poor, f"--port={poor_port}", f"--internal-port={poor_internal}"),
        ):
            await asyncio.to_thread(_deploy, apiserver, namespace, replica.port)
            url = f"http://127.0.0.1:{port}"
            await _until_routed(http, url, replica.state.model_names[0])
            assert await _ask(http, url, "shut") == 503
            async with _held(http, url, "asleep"), _held(http, url, "gone"):
                targets = [
                    Target(replica.url, {**OF_SERVERS, "pod": "tiny-1"}),
                    Target(f"http://127.0.0.1:{internal}", {"namespace": "sys", "pod": "gateway-1"}),
                    Target(f"http://127.0.0.1:{poor_internal}", {"namespace": "sys", "pod": "gateway-2"}),
                    Target(f"http://127.0.0.1:{operator_port}", {"namespace": "sys", "pod": "operator-1"}),
                ]
                await _until_counted(http, targets)
            # What was held is counted when it ends.
            found = [series for target in targets for series in await target.scrape(http)]
            for name in (NAMESPACE, FULL_NAMESPACE):
                # Other tests' operators would find them.
                await asyncio.to_thread(Namespace(apiserver, name).clear)
            return found


def _deploy(apiserver: ApiServer, namespace: Namespace, port: int) -> None:
    """A model with a live replica, and what goes wrong: a replica that is gone, no replica at all, zero, a quota."""
    namespace.create("tiny")
    namespace.create("gone")
    namespace.create("shut", replicas=0, routing={"maxHeldRequests": 0})
    namespace.create("asleep", scaling={"minReplicas": 0, "maxReplicas": 2, "idleAfter": "10m"})
    for name, pod_port in (("tiny", port), ("gone", free_ports(1)[0])):
        deployment = until(lambda name=name: namespace.deployment_of(name), bool)
        template = deployment["spec"]["template"]
        template["spec"]["containers"][0]["ports"][0]["containerPort"] = pod_port
        ready = {"phase": "Running", "podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
        namespace.add_pod(deployment, f"{name}-1", ready)
    until(lambda: namespace.get("ModelDeployment", "asleep")["spec"].get("replicas"), lambda number: number is not None)
    namespace.patch("ModelDeployment", "asleep", {"spec": {"replicas": 0}}, subresource="scale")
    full = Namespace(apiserver, FULL_NAMESPACE)
    hard = {"count/services": "0"}
    quota: dict[str, Any] = {"metadata": {"name": "none"}, "spec": {"hard": hard}}
    path = f"/api/v1/namespaces/{full.name}/resourcequotas"
    assert apiserver.request("POST", path, quota).status == 201
    status = {"status": {"hard": hard, "used": {"count/services": "0"}}}
    merge = "application/merge-patch+json"
    assert apiserver.request("PATCH", f"{path}/none/status", status, content_type=merge).status == 200
    full.create("refused")


async def _until_routed(http: aiohttp.ClientSession, url: str, model: str) -> None:
    async with asyncio.timeout(60):
        while await _ask(http, url, model) != 200:
            await asyncio.sleep(0.2)
    for _ in range(2):
        assert await _ask(http, url, model) == 200


async def _ask(http: aiohttp.ClientSession, url: str, model: str) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": "Tell me something long. " * 8}], "max_tokens": 8}
    try:
        async with http.post(f"{url}/v1/chat/completions", json=body) as response:
            await response.read()
            return response.status
    except aiohttp.ClientError:
        return 0


@contextlib.asynccontextmanager
async def _held(http: aiohttp.ClientSession, url: str, model: str) -> AsyncIterator[None]:
    """A request that no replica can take, which waits until its client leaves."""
    task = asyncio.create_task(_ask(http, url, model))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _until_counted(http: aiohttp.ClientSession, targets: list[Target]) -> None:
    """Until each rare counter has a series."""
    wanted = {
        "octavo_gateway_held_requests",
        "octavo_gateway_wakes_total",
        "octavo_gateway_upstream_errors_total",
        "octavo_gateway_source_errors_total",
        "octavo_operator_reconcile_errors_total",
        "octavo_operator_writes_total",
    }
    async with asyncio.timeout(60):
        while not await _have(http, targets, wanted):
            await asyncio.sleep(0.2)


async def _have(http: aiohttp.ClientSession, targets: list[Target], wanted: set[str]) -> bool:
    try:
        return wanted <= {series.name for target in targets for series in await target.scrape(http)}
    except aiohttp.ClientConnectionError:
        # A process that still starts.
        return False


@contextlib.contextmanager
def _process(module: str, folder: Path, *arguments: str) -> Iterator[None]:
    with (folder / f"{module}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, "PYTHONPATH": str(OPERATOR_PATH)},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
