"""The real HPA scales a ModelDeployment on the engine's own KV pressure, made by real load, up and down again."""

from __future__ import annotations

import json
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


def test_pressure_scales_up_and_idleness_scales_down_without_a_failed_request(octavo: Octavo, busy: Model) -> None:
    env = busy.pods()[0]["spec"]["containers"][0]["env"]
    assert {"name": "OMP_NUM_THREADS", "value": "1"} in env

    with Load(octavo.gateway_url, busy.name, num_clients=NUM_CLIENTS) as load:
        wait_until(lambda: _metric(busy) > 1.0, "the adapter serves a pressure above 1", limit_s=30)
        wait_until(
            lambda: (busy.status().get("replicas"), busy.status().get("readyReplicas")) == (2, 2),
            "two replicas are ready",
            limit_s=120,
            describe=lambda: json.dumps([busy.status(), _hpa(busy)["status"]]),
        )
        load.keep_only(1)
        wait_until(
            lambda: len(busy.pods()) == 1 and busy.status().get("replicas") == 1,
            "one replica is left",
            limit_s=120,
            describe=lambda: json.dumps([busy.status(), _hpa(busy)["status"]]),
        )

    assert load.errors == []
    [left] = busy.pods()
    assert int(left["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"]) >= 0
    assert load.num_answers > NUM_CLIENTS
    assert _hpa(busy)["spec"]["metrics"][0]["pods"]["metric"]["name"] == "octavo_kv_pressure_ratio"
    assert busy.get()["spec"]["replicas"] == 1


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
