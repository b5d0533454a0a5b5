"""An idle model goes to zero; the next request is held, wakes it, and gets its answer."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from e2e.cluster.models import START_LIMIT_S, Model, apply_model, read_manifest
from e2e.cluster.octavo import Octavo
from e2e.cluster.waiting import wait_until

pytestmark = pytest.mark.e2e

MANIFEST = Path(__file__).with_name("modeldeployment.yaml")


@pytest.fixture
def sleepy(octavo: Octavo, namespace: str) -> Model:
    model = apply_model(octavo, read_manifest(MANIFEST, octavo), namespace)
    model.wait_ready()
    return model


def test_idle_model_goes_to_zero_and_a_request_wakes_it(sleepy: Model, client: openai.OpenAI) -> None:
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
    assert len(sleepy.pods()) == 1
