"""The status as a whole, and that it is written only where something changed."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.finding import Finding
from octavo_operator.observed import Capacity, Observed
from octavo_operator.status import make_failed_status, make_status, pressure_text, status_patch
from octavo_testing.control_plane import NOW, a_desired, a_manifest, a_pod, a_resource, an_observed, observed_as


def status(observed: Observed, *, gateway_url: str = "", **spec: Any) -> dict[str, Any]:
    resource = a_resource(**spec)
    return make_status(resource, a_desired(resource, observed), observed, gateway_url=gateway_url, now=NOW)


def test_counts_span_the_revisions() -> None:
    desired = a_desired(a_resource(replicas=2))
    pods = (
        a_pod("a", revision=desired.revision, ready=True),
        a_pod("b", revision=desired.revision),
        a_pod("c", revision="old", ready=True),
        a_pod("d", revision="old", terminating=True),
        a_pod("e", revision="old", phase="Failed", ready=True),
    )

    told = status(observed_as(desired, pods=pods), replicas=2)

    assert (told["replicas"], told["readyReplicas"], told["updatedReplicas"], told["drainingReplicas"]) == (3, 2, 2, 1)
    assert told["selector"] == "app.kubernetes.io/managed-by=octavo,octavo.dev/modeldeployment=qwen"
    assert told["observedGeneration"] == 3
    assert (told["rollout"]["revision"], told["rollout"]["admitted"]) == (desired.revision, [desired.revision])


def test_endpoint_is_the_gateways_or_the_services() -> None:
    assert status(an_observed())["endpoint"] == "http://qwen.default.svc:8000/v1"
    assert status(an_observed(), gateway_url="http://gw")["endpoint"] == "http://gw/v1"


def test_served_models_and_pressure_are_told() -> None:
    told = status(an_observed(pressure=0.93), servedNames=["a"])

    assert told["servedModels"] == ["a"]
    assert told["scaling"] == {"desired": 1, "pressure": "0.95"}
    assert status(an_observed())["scaling"] == {"desired": 1}


@pytest.mark.parametrize(
    ("pressure", "text"), [(0.0, "0"), (0.02, "0"), (0.03, "0.05"), (0.35, "0.35"), (2.5, "2.5"), (12.0, "12")]
)
def test_pressure_is_rounded_to_steps(pressure: float, text: str) -> None:
    assert pressure_text(pressure) == text


def test_capacity_outlives_the_replicas_that_told_it() -> None:
    told = status(an_observed(capacity=Capacity(kv_tokens=1000, max_num_seqs=8, tokens_per_second=0.0)))

    assert told["capacity"] == {"kvTokensPerReplica": 1000, "maxConcurrent": 8}
    assert status(an_observed(resource=a_manifest(status=told)))["capacity"] == told["capacity"]
    assert "capacity" not in status(an_observed())


def test_failed_step_still_tells_generation_and_counts() -> None:
    before = {"endpoint": "http://x/v1", "rollout": {"revision": "a", "admitted": ["a"]}}
    observed = an_observed(resource=a_manifest(status=before), pods=(a_pod(ready=True),))

    told = make_failed_status(observed, Finding(reason="SpecInvalid", sentence="no"), now=NOW)

    assert told["observedGeneration"] == 3
    assert told["rollout"] == before["rollout"]
    assert told["readyReplicas"] == 1
    assert next(each for each in told["conditions"] if each["type"] == "Ready")["reason"] == "SpecInvalid"


@pytest.mark.parametrize("pressure", [0.93, None])
def test_failed_step_tells_what_the_replicas_tell(pressure: float | None) -> None:
    """As long as the status says otherwise each round of loads brings a look, and each look a try of what fails."""
    before = {"scaling": {"desired": 2, "pressure": "0.5"}, "capacity": {"kvTokensPerReplica": 1, "maxConcurrent": 1}}
    capacity = Capacity(kv_tokens=1000, max_num_seqs=8, tokens_per_second=0.0)
    observed = an_observed(resource=a_manifest(status=before), pressure=pressure, capacity=capacity)

    told = make_failed_status(observed, Finding(reason="NameTaken", sentence="no"), now=NOW)

    assert told["scaling"] == {"desired": 2, **({} if pressure is None else {"pressure": "0.95"})}
    assert told["capacity"] == {"kvTokensPerReplica": 1000, "maxConcurrent": 8}


def test_second_pass_over_the_same_world_writes_nothing() -> None:
    first = status(an_observed(pressure=0.5))

    second = status(an_observed(resource=a_manifest(status=first), pressure=0.5))

    assert status_patch(first, second) == {}


def test_patch_has_only_what_changed() -> None:
    old = {"a": 1, "gone": 2, "deep": {"x": 1, "y": 2, "z": 3}, "list": [1], "same": {"k": 1}, "was": 1}
    new = {"a": 1, "deep": {"x": 1, "y": 3}, "list": [2], "new": 5, "same": {"k": 1}, "was": {"k": 1}}

    assert status_patch(old, new) == {
        "gone": None,
        "deep": {"y": 3, "z": None},
        "list": [2],
        "new": 5,
        "was": {"k": 1},
    }
