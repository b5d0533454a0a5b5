"""Many ModelDeployments at once on a real API server: how soon, how dear, how large, how quiet, and how quick after that.

Sixty here, a thousand by `./scripts/test --full`. Each has a scaler and two replicas, which costs the most requests.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from octavo_testing.apiserver import ApiServer
from octavo_testing.operator_process import Namespace, count_writes, running_operator, until

FULL = bool(os.environ.get("OCTAVO_FULL"))
pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)] if FULL else []

NUM_RESOURCES = 1000 if FULL else 60
NUM_CHANGES = 200 if FULL else 10
QUIET_S = 600 if FULL else 4
LISTS = 40
"""Requests that do not depend on the number of resources: a few rounds of lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """All of them, reconciled, and what that took."""

    namespace: Namespace
    port: int
    process: subprocess.Popen[bytes]
    seconds: float
    requests: float

    @property
    def peak_mib(self) -> float:
        """The most memory that the operator ever held."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
        return int(kib) / 1024


@pytest.fixture(scope="module")
def crowd(apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    log = tmp_path_factory.mktemp("crowd") / "operator.log"
    namespace = Namespace(apiserver, "crowd")
    with running_operator(apiserver, log, "--lease-name=crowd") as process:
        text = until(log.read_text, lambda text: "is_leader=True" in text)
        port = int(re.findall(r"operator started port=(\d+)", text)[-1])
        time.sleep(2)
        before, begun = total(port, "requests"), time.monotonic()
        with ThreadPoolExecutor(8) as people:
            scaling = {"minReplicas": 2, "maxReplicas": 4, "backend": "HPA"}
            list(people.map(lambda number: namespace.create(f"m{number}", scaling=scaling), range(NUM_RESOURCES)))
        while not (total(port, "queue_depth") == 0 and are_reconciled(namespace)):
            assert time.monotonic() - begun < 300, f"{total(port, 'queue_depth')} are still to be looked at"
            time.sleep(0.5)
        seconds, requests = time.monotonic() - begun, total(port, "requests") - before
        yield Crowd(namespace=namespace, port=port, process=process, seconds=seconds, requests=requests)
        namespace.clear()


def total(port: int, metric: str) -> float:
    """Sum over all series of one of the operator's metrics; what keeps its Lease is left out."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        text = response.read().decode()
    series = re.findall(rf"^octavo_operator_{metric}(?:_total)?(\{{[^}}]*\}})? ([0-9.e+]+)$", text, re.MULTILINE)
    return sum(float(value) for labels, value in series if "leases" not in labels)


def are_reconciled(namespace: Namespace) -> bool:
    """Whether each has what was asked for, and says so of its newest spec."""
    path = f"/apis/octavo.dev/v1alpha1/namespaces/{namespace.name}/modeldeployments"
    resources: list[dict[str, Any]] = namespace.server.request("GET", path).body["items"]
    told = [each for each in resources if each.get("status", {}).get("observedGeneration", 0) > 1]
    if len(told) < NUM_RESOURCES:
        return False
    kinds = ("Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "HorizontalPodAutoscaler")
    return all(len(namespace.names(kind)) == NUM_RESOURCES for kind in kinds)


def test_all_are_reconciled_within_a_minute(crowd: Crowd, record_property: Any) -> None:
    record_property("resources", NUM_RESOURCES)
    record_property("seconds", round(crowd.seconds, 1))

    assert crowd.seconds < 60


def test_none_costs_more_than_twelve_requests(crowd: Crowd, record_property: Any) -> None:
    record_property("requests_each", round(crowd.requests / NUM_RESOURCES, 2))

    assert crowd.requests <= 12 * NUM_RESOURCES + LISTS


def test_changes_are_applied_within_a_second(crowd: Crowd, record_property: Any) -> None:
    namespace, took = crowd.namespace, []
    deployments = {name.rpartition("-")[0]: name for name in namespace.names("Deployment")}
    for number in range(NUM_CHANGES):
        begun = time.monotonic()
        namespace.patch("ModelDeployment", f"m{number}", {"spec": {"replicas": 1}}, subresource="scale")
        deployment = deployments[f"m{number}"]
        until(lambda name=deployment: namespace.get("Deployment", name) or {}, lambda got: got["spec"]["replicas"] == 1)  # type: ignore[misc]
        took.append(time.monotonic() - begun)

    p99 = sorted(took)[int(0.99 * len(took))]
    record_property("p99_s", round(p99, 3))
    assert p99 < 1


def test_nothing_is_written_while_nothing_happens(crowd: Crowd, record_property: Any) -> None:
    time.sleep(3)
    before = count_writes(crowd.namespace.server), total(crowd.port, "writes")

    time.sleep(QUIET_S)

    record_property("quiet_s", QUIET_S)
    assert (count_writes(crowd.namespace.server), total(crowd.port, "writes")) == before


def test_memory_stays_small(crowd: Crowd, record_property: Any) -> None:
    record_property("peak_mib", round(crowd.peak_mib))

    assert crowd.peak_mib < 250
