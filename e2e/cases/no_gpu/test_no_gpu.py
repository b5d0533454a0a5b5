"""A one-field resource on a cluster without GPUs says what it waits for."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.cluster.models import apply_model, read_manifest
from e2e.cluster.octavo import Octavo
from e2e.cluster.waiting import wait_until

pytestmark = pytest.mark.e2e

MANIFEST = Path(__file__).with_name("modeldeployment.yaml")


def test_model_that_finds_no_gpu_says_so(octavo: Octavo, namespace: str) -> None:
    if octavo.target.lab is None:
        pytest.skip("the existing cluster may have GPUs")

    model = apply_model(octavo, read_manifest(MANIFEST, octavo), namespace)

    wait_until(
        lambda: model.condition("Ready").get("reason") == "InsufficientGPU",
        "the reason is InsufficientGPU",
        limit_s=30,
        describe=model.describe,
    )
    assert "nvidia.com/gpu" in model.condition("Ready")["message"]
    assert model.condition("Scheduled")["status"] == "False"
