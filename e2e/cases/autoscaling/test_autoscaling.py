"""The real HPA scales a ModelDeployment on the engine's own KV pressure, made by real load, up and down again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from e2e.cases.autoscaling.load import Load
from e2e.cluster.models import Model, apply_model, read_manifest
from e2e.cluster.octavo import Octavo
from e2e.cluster.waiting import wait_until

pytestmark = pytest.mark.e2e

MANIFEST = Path(__file__).with_name("modeldeployment.yaml")
NUM_CLIENTS = 8


@pytest.fixture
def busy(octavo: Octavo, namespace: str) -> Model:
    model = apply_model(octavo, read_manifest(MANIFEST, octavo), namespace)
    model.wait_ready()
    return model


def test_four_times_the_load_is_four_replicas_in_one_step_and_back_without_a_failed_request(
    octavo: Octavo, busy: Model
) -> None:
    env = busy.pods()[0]["spec"]["containers"][0]["env"]
    assert {"name": "OMP_NUM_THREADS", "value": "1"} in env

    with Load(octavo.gateway_url, busy.name, num_clients=NUM_CLIENTS) as load:
        wait_until(lambda: _metric(busy) > 3.0, "the adapter serves a pressure above 3", limit_s=60)
        wait_until(
            lambda: (busy.status().get("replicas"), busy.status().get("readyReplicas")) == (4, 4),
            "four replicas are ready",
            limit_s=300,
            describe=lambda: json.dumps([busy.status(), _hpa(busy)["status"]]),
        )
        assert _sizes(busy) == [4], "the first decision was not the right one"
        assert _hpa(busy)["status"]["desiredReplicas"] == 4
        load.keep_only(1)
        wait_until(
            lambda: len(busy.pods()) == 1 and busy.status().get("replicas") == 1,
            "one replica is left",
            limit_s=300,
            describe=lambda: json.dumps([busy.status(), _hpa(busy)["status"]]),
        )

    assert load.errors == []
    assert _sizes(busy) == [4, 3, 2, 1], "it flapped"
    decisions = busy.status()["scaling"]["decisions"]
    assert [(each["from"], each["to"]) for each in decisions] == [(2, 1), (3, 2), (4, 3), (1, 4)]
    [left] = busy.pods()
    assert int(left["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"]) >= 0
    assert load.num_answers > NUM_CLIENTS
    assert _hpa(busy)["spec"]["metrics"][0]["pods"]["metric"]["name"] == "octavo_kv_pressure_ratio"
    assert busy.get()["spec"]["replicas"] == 1


def _sizes(model: Model) -> list[int]:
    """What the HPA controller has scaled to, first to last, by its own events."""
    events = model.octavo.target.kubectl.items(
        "events", "--field-selector=reason=SuccessfulRescale", namespace=model.namespace
    )
    sizes: list[int] = []
    for event in sorted(events, key=_began):
        [size] = re.findall(r"New size: (\d+)", event["message"])
        # The same message again is counted and no new event.
        sizes += [int(size)] * int(event.get("count") or 1)
    return sizes


def _began(event: dict[str, Any]) -> str:
    return str(event.get("firstTimestamp") or event["metadata"]["creationTimestamp"])


def _metric(model: Model) -> float:
    """Largest pressure over the pods, as the adapter tells it through the API server."""
    path = (
        f"/apis/custom.metrics.k8s.io/v1beta2/namespaces/{model.namespace}/pods/%2A/octavo_kv_pressure_ratio"
        f"?labelSelector=octavo.dev%2Fmodeldeployment%3D{model.name}"
    )
    items = json.loads(model.octavo.target.kubectl("get", f"--raw={path}"))["items"]
    return max((_number(item["value"]) for item in items), default=0.0)


def _number(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def _hpa(model: Model) -> dict[str, Any]:
    return model.octavo.target.kubectl.get("horizontalpodautoscaler", model.name, namespace=model.namespace)
