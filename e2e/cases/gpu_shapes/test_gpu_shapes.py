"""What else than whole GPUs a model may ask for, on the real scheduler: slices, a product, claims for devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster import config
from e2e.cluster.models import Model, apply_model, read_manifest
from e2e.cluster.octavo import Octavo
from e2e.cluster.waiting import wait_until

pytestmark = pytest.mark.e2e

FOLDER = Path(__file__).parent
SLICE = "nvidia.com/mig-1g.10gb"
PRODUCT = "nvidia.com/gpu.product"


@pytest.fixture
def model(octavo: Octavo, namespace: str) -> Model:
    """Asks for a slice, which no node has."""
    if octavo.target.lab is None:
        pytest.skip("the existing cluster's devices are its own")
    return apply_model(octavo, read_manifest(FOLDER / "modeldeployment.yaml", octavo), namespace)


def test_model_serves_on_one_slice_of_a_gpu_and_says_what_others_wait_for(model: Model) -> None:
    kubectl = model.octavo.target.kubectl
    _await_message(model, f"none of 1 nodes offers {SLICE}")

    _offer(model, {SLICE: "1", "nvidia.com/mig-3g.40gb": "2"})
    try:
        model.wait_ready()
        (pod,) = model.pods()
        assert pod["spec"]["containers"][0]["resources"]["limits"][SLICE] == "1"
        kubectl(*_patch(model, '{"spec": {"replicas": 2}}'))
        _await_message(model, f"needs 1 {SLICE}, 0 of 1 nodes with such slices have one free (1 full)")
    finally:
        _offer(model, {SLICE: None, "nvidia.com/mig-3g.40gb": None})


def test_model_goes_to_the_node_whose_gpus_are_its_product(model: Model) -> None:
    kubectl, node = model.octavo.target.kubectl, config.NODE
    kubectl("label", "node", node, f"{PRODUCT}=NVIDIA-L4")
    try:
        gpu = '{"resourceName": "nvidia.com/gpu", "product": "NVIDIA-H200", "count": 1}'
        kubectl(*_patch(model, f'{{"spec": {{"resources": {{"gpu": {gpu}}}}}}}'))
        _await_message(model, "needs a node with NVIDIA-H200, none of 1 is one; the cluster has NVIDIA-L4 (1)")

        kubectl("label", "node", node, f"{PRODUCT}=NVIDIA-H200", "--overwrite")
        _await_message(model, "needs 1 nvidia.com/gpu")
        _offer(model, {"nvidia.com/gpu": "1"})
        model.wait_ready()
    finally:
        kubectl("label", "node", node, f"{PRODUCT}-")
        _offer(model, {"nvidia.com/gpu": None})


def test_model_says_what_its_claims_wait_for_until_the_scheduler_has_allocated_devices(model: Model) -> None:
    """Then only a driver is wanting, which none of this cluster is."""
    kubectl = model.octavo.target.kubectl
    device_class, template, devices = yaml.safe_load_all((FOLDER / "claims.yaml").read_text())
    claims = '[{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]'
    gpu = f'{{"resourceName": "nvidia.com/gpu", "count": 1, "claims": {claims}}}'
    kubectl(*_patch(model, f'{{"spec": {{"resources": {{"gpu": {gpu}}}}}}}'))
    try:
        _await_message(model, "waits for claims that are not made yet (gpu of one-gpu)", reason="ResourceClaimPending")
        kubectl.apply([template], namespace=model.namespace)
        _await_message(model, "device class gpu.octavo.test does not exist", reason="ResourceClaimPending")
        kubectl.apply([device_class])
        _await_message(model, "no node has devices free for the claims", reason="InsufficientGPU")
        kubectl.apply([devices])
        wait_until(
            lambda: model.condition("Scheduled").get("status") == "True" and _allocated(model),
            "the claim is allocated and the pod has its node",
            limit_s=90,
            describe=model.describe,
        )
    finally:
        kubectl("delete", "resourceslice,deviceclass", "--all", "--ignore-not-found")


def _allocated(model: Model) -> list[dict[str, Any]]:
    """Devices of the model's claims, once the scheduler has chosen them."""
    claims = model.octavo.target.kubectl.items("resourceclaims", namespace=model.namespace)
    found = (claim.get("status", {}).get("allocation", {}).get("devices", {}).get("results", []) for claim in claims)
    return [device for devices in found for device in devices]


def _offer(model: Model, resources: dict[str, str | None]) -> None:
    """Extended resources of the node, with no device behind them; None takes one away."""
    model.octavo.target.kubectl.patch_status(
        "node", config.NODE, {"status": {"capacity": resources, "allocatable": resources}}
    )


def _patch(model: Model, patch: str) -> list[str]:
    words = ["patch", "modeldeployment", model.name, f"--namespace={model.namespace}", "--type=merge"]
    return [*words, f"--patch={patch}"]


def _await_message(model: Model, words: str, *, reason: str = "") -> None:
    wait_until(
        lambda: (
            words in model.condition("Ready").get("message", "") and reason in (model.condition("Ready")["reason"], "")
        ),
        f"Ready says {words!r}",
        limit_s=90,
        describe=model.describe,
    )
