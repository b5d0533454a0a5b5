"""A server pod that is killed is replaced, and the status is true all the while."""

from __future__ import annotations

import openai
import pytest

from e2e.cluster.models import Model
from e2e.cluster.waiting import wait_until

pytestmark = pytest.mark.e2e


def test_killed_pod_is_replaced_and_the_status_follows(smol: Model, client: openai.OpenAI) -> None:
    """A request that comes while no replica is ready is held, not failed."""
    killed = smol.pods()[0]["metadata"]
    words = ["delete", "pod", killed["name"], f"--namespace={smol.namespace}", "--grace-period=0", "--force"]
    smol.octavo.target.kubectl(*words)
    wait_until(lambda: not smol.is_ready(), "the status says that it is not ready", limit_s=10, describe=smol.describe)
    assert smol.status()["readyReplicas"] == 0

    reply = client.chat.completions.create(
        model=smol.name, messages=[{"role": "user", "content": "Say hello."}], max_tokens=8, timeout=120
    )
    smol.wait_ready()

    assert reply.usage.completion_tokens > 0
    assert killed["uid"] not in {pod["metadata"]["uid"] for pod in smol.pods()}
    assert smol.status()["readyReplicas"] == 1
