"""A model rolls over while eight streams run at all times: no request fails, and no token is lost or comes twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.cases.rollouts.streams import Streams
from e2e.cluster.models import Model, apply_model, read_manifest
from e2e.cluster.octavo import Octavo
from e2e.cluster.waiting import wait_until

pytestmark = pytest.mark.e2e

MANIFEST = Path(__file__).with_name("modeldeployment.yaml")
NUM_STREAMS = 8


@pytest.fixture
def gpus(octavo: Octavo) -> Iterator[None]:
    """The cluster's GPUs are given by the case; afterwards there is none again."""
    if octavo.target.lab is None:
        pytest.skip("the existing cluster's GPUs are its own")
    yield
    octavo.target.lab.add_fake_gpus(0)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(("num_gpus", "strategy"), [(2, "Surge"), (1, "HoldAndSwap")], ids=["surge", "hold-and-swap"])
def test_eight_streams_see_nothing_of_a_rollout(
    octavo: Octavo, namespace: str, num_gpus: int, strategy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a second GPU Auto surges; with one it finds no room and swaps, and requests wait meanwhile."""
    assert octavo.target.lab is not None
    octavo.target.lab.add_fake_gpus(num_gpus)
    model = apply_model(octavo, read_manifest(MANIFEST, octavo), namespace)
    model.wait_ready()
    old = _rollout(model)["revision"]

    with Streams(octavo.gateway_url, model.name, num_clients=NUM_STREAMS) as streams:
        _wait_answers(streams, NUM_STREAMS)
        _change(model)
        wait_until(
            lambda: _is_over(model, old),
            "the new revision serves alone",
            limit_s=200,
            describe=lambda: json.dumps([streams.problems, model.status()]),
        )
        _wait_answers(streams, streams.num_answers + NUM_STREAMS)

    with capsys.disabled():
        print(f"\n{strategy}: {streams.num_answers} streams, the longest took {streams.longest_s:.1f} s", end="")
    assert streams.problems == []
    assert _rollout(model)["strategy"] == strategy
    assert _rollout(model)["admitted"] == [_rollout(model)["revision"]] != [old]


@pytest.mark.usefixtures("gpus")
def test_revision_that_fails_its_gate_never_serves_and_one_that_passes_does(octavo: Octavo, namespace: str) -> None:
    """The real model is asked a question whose answer it does not give, and then one that it does."""
    assert octavo.target.lab is not None
    octavo.target.lab.add_fake_gpus(2)
    model = apply_model(octavo, read_manifest(MANIFEST, octavo), namespace)
    model.wait_ready()
    old = _rollout(model)["revision"]

    _change(model, rollout={"gate": _gate(expect="no model says this")})
    wait_until(
        lambda: model.condition("Ready").get("reason") == "RolloutGateFailed" and len(model.pods()) == 1,
        "the new revision is rolled back",
        limit_s=120,
        describe=model.describe,
    )
    assert "the answer does not contain 'no model says this'" in model.condition("Ready")["message"]
    assert (_rollout(model)["admitted"], model.condition("Available")["status"]) == ([old], "True")

    _change(model, rollout={"gate": _gate(expect="a")})
    wait_until(lambda: _is_over(model, old), "the new revision serves", limit_s=120, describe=model.describe)
    gate = _rollout(model)["gate"]
    assert gate["state"] == "Passed"
    assert float(gate["baseline"]) > 0


def _gate(*, expect: str) -> dict[str, Any]:
    prompt = {"prompt": "Name an animal.", "expect": expect, "maxTokens": 24}
    return {"prompts": [prompt], "minThroughputRatio": "0.01"}


def _change(model: Model, **fields: Any) -> None:
    """Another template that computes the same."""
    patch = json.dumps({"spec": {"engine": {"maxModelLen": 1000}, **fields}})
    words = ["patch", "modeldeployment", model.name, f"--namespace={model.namespace}", "--type=merge"]
    model.octavo.target.kubectl(*words, f"--patch={patch}")


def _rollout(model: Model) -> dict[str, Any]:
    found: dict[str, Any] = model.status().get("rollout", {})
    return found


def _is_over(model: Model, old: str) -> bool:
    is_alone = len(model.pods()) == 1
    return is_alone and model.is_ready() and _rollout(model).get("stable") not in (old, None)


def _wait_answers(streams: Streams, number: int) -> None:
    wait_until(lambda: streams.num_answers >= number, f"{number} streams have ended", limit_s=100)
