"""A bad model costs its owner a clear sentence, and nobody else anything."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from e2e.cluster.models import Model, apply_model, read_manifest
from e2e.cluster.octavo import Octavo
from e2e.cluster.waiting import wait_until

pytestmark = pytest.mark.e2e

MANIFEST = Path(__file__).with_name("modeldeployment.yaml")


def test_absent_model_gets_a_reason_and_a_sentence_and_others_go_on(
    octavo: Octavo, smol: Model, client: openai.OpenAI, namespace: str
) -> None:
    absent = apply_model(octavo, read_manifest(MANIFEST, octavo), namespace)

    wait_until(
        lambda: absent.condition("Ready").get("reason") == "ModelNotFound",
        "the reason is ModelNotFound",
        limit_s=60,
        describe=absent.describe,
    )
    condition = absent.condition("Ready")
    reply = client.chat.completions.create(
        model=smol.name, messages=[{"role": "user", "content": "Say hello."}], max_tokens=8
    )

    assert condition["status"] == "False"
    assert "/models/no-such-model-at-all" in condition["message"]
    assert smol.is_ready()
    assert reply.usage.completion_tokens > 0
