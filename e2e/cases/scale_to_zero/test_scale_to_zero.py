"""An idle model goes to zero; the next request is held, wakes it, and gets its answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from e2e.cluster.models import START_LIMIT_S, Model, apply_model, read_manifest
from e2e.cluster.octavo import Octavo
from e2e.cluster.waiting import wait_until

pytestmark = pytest.mark.e2e

STAGES = ("scheduled", "imagePull", "download", "load", "warmup", "total")
MANIFEST = Path(__file__).with_name("modeldeployment.yaml")


@pytest.fixture
def sleepy(octavo: Octavo, namespace: str) -> Model:
    model = apply_model(octavo, read_manifest(MANIFEST, octavo), namespace)
    model.wait_ready()
    return model


def test_idle_model_goes_to_zero_and_a_request_wakes_it(sleepy: Model, client: openai.OpenAI) -> None:
    [first] = sleepy.pod_names()
    wait_until(
        lambda: not sleepy.pods() and sleepy.condition("Ready").get("reason") == "ScaledToZero",
        "the model is scaled to zero and says so",
        limit_s=60,
        describe=sleepy.describe,
    )
    assert sleepy.get()["spec"]["replicas"] == 0

    reply = client.with_options(timeout=START_LIMIT_S).chat.completions.create(
        model=sleepy.name, messages=[{"role": "user", "content": "Say hello."}], max_tokens=8
    )

    assert reply.usage.completion_tokens > 0
    [woken] = sleepy.pods()
    assert woken["metadata"]["name"] != first
    report = wait_until(
        lambda: _told_of(woken, sleepy), "the status says what the start took", limit_s=30, describe=sleepy.describe
    )
    spans = {name: int(report[name].removesuffix("s")) for name in STAGES}
    assert spans["download"] == 0, "the model is on the node"
    assert spans["total"] > 0
    stages = sum(seconds for name, seconds in spans.items() if name != "total")
    # Each is rounded; the rest is the interpreter, imports and the probe.
    assert stages - len(STAGES) <= spans["total"] <= START_LIMIT_S


def _told_of(pod: dict[str, Any], model: Model) -> dict[str, Any] | None:
    report: dict[str, Any] = model.status().get("coldStart", {})
    return report if report.get("pod") == pod["metadata"]["name"] else None
