"""What a person is told of the autoscaler, by what its object or the loads say."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.desired.scaler import Scaler, ScalingApis
from octavo_operator.observed import Observed
from octavo_operator.scaler_view import NO_PRESSURE, NOT_YET, ScalerView, view_scaler
from octavo_testing.control_plane import a_pod, a_resource, an_observed

OBJECTS = {"HPA": ("HorizontalPodAutoscaler", "ScalingActive"), "KEDA": ("ScaledObject", "Ready")}
SERVING, LOADING = a_pod(ready=True), a_pod()


def told(kind: str, observed: Observed) -> ScalerView:
    return view_scaler(a_resource(scaling={"maxReplicas": 2}), Scaler(kind=kind), observed)


def observed_of(kind: str, *, status: str, message: str = "", ready: bool = True, **world: Any) -> Observed:
    """The backend's object has its condition, beside one that nobody asks for."""
    object_kind, condition = OBJECTS[kind]
    conditions = [
        {"type": "Fallback", "status": "Unknown", "message": "another matter"},
        {"type": condition, "status": status, "message": message},
    ]
    made = {
        "kind": object_kind,
        "metadata": {"namespace": "default", "name": "qwen"},
        "status": {"conditions": conditions},
    }
    return an_observed(made, pods=(SERVING if ready else LOADING,), **world)


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize(
    ("status", "ready", "expected"),
    [
        ("True", True, ScalerView(is_active=True, message="it looks, closely")),
        ("True", False, ScalerView(is_active=True, message="it looks, closely")),
        ("False", True, ScalerView(is_active=False, message="it looks, closely")),
        ("False", False, ScalerView(is_active=False, message=NO_PRESSURE)),
        ("Unknown", True, ScalerView(is_active=None, message=NOT_YET)),
    ],
)
def test_what_scales_speaks_by_the_condition_of_its_object(
    kind: str, status: str, ready: bool, expected: ScalerView
) -> None:
    found = told(kind, observed_of(kind, status=status, message="it looks,\n closely", ready=ready))

    assert found == expected


@pytest.mark.parametrize(
    ("hpa", "ready", "expected"),
    [
        ("False", True, ScalerView(is_active=False, message="no metric")),
        # at zero replicas an autoscaler has nothing to look at
        ("False", False, ScalerView(is_active=True, message="defined")),
        ("True", True, ScalerView(is_active=True, message="defined")),
        ("Unknown", True, ScalerView(is_active=True, message="defined")),
    ],
)
def test_keda_that_is_ready_and_finds_no_metric_does_not_scale(hpa: str, ready: bool, expected: ScalerView) -> None:
    conditions = [
        {"type": "Ready", "status": "True", "message": "defined"},
        {"type": "HPAActive", "status": hpa, "message": "no metric"},
    ]
    made = {
        "kind": "ScaledObject",
        "metadata": {"namespace": "default", "name": "qwen"},
        "status": {"conditions": conditions},
    }

    assert told("KEDA", an_observed(made, pods=(SERVING if ready else LOADING,))) == expected


@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_that_says_nothing_has_not_looked(kind: str) -> None:
    object_kind, _ = OBJECTS[kind]
    bare = {"kind": object_kind, "metadata": {"namespace": "default", "name": "qwen"}}

    assert told(kind, an_observed(bare, pods=(SERVING,))) == ScalerView(is_active=None, message=NOT_YET)
    assert told(kind, an_observed(pods=(SERVING,))) == ScalerView(is_active=None, message=NOT_YET)


@pytest.mark.parametrize("pod", [SERVING, LOADING], ids=["serving", "loading"])
def test_an_hpa_that_still_rests_has_not_looked_since_the_model_was_woken(pod: Any) -> None:
    resting = {
        "type": "ScalingActive",
        "status": "False",
        "reason": "ScalingDisabled",
        "message": "scaling is disabled",
    }
    metadata = {"namespace": "default", "name": "qwen"}
    made = {"kind": "HorizontalPodAutoscaler", "metadata": metadata, "status": {"conditions": [resting]}}

    assert told("HPA", an_observed(made, pods=(pod,))) == ScalerView(is_active=None, message=NOT_YET)


@pytest.mark.parametrize(
    ("status", "ready", "message"),
    [("Unknown", True, NOT_YET), ("False", True, "no metric"), ("False", False, NO_PRESSURE)],
)
def test_trouble_of_our_metrics_adapter_is_told_where_it_can_be_the_cause(
    status: str, ready: bool, message: str
) -> None:
    apis = ScalingApis(adapter_trouble="another serves them")

    def view(kind: str, status: str) -> ScalerView:
        return told(kind, observed_of(kind, status=status, message="no metric", ready=ready, scaling_apis=apis))

    assert view("HPA", status).message == f"{message}; the operator's metrics adapter: another serves them"
    assert view("HPA", "True").message == "no metric", "the metric came all the same"
    assert view("KEDA", status).message == message, "KEDA asks Prometheus"


@pytest.mark.parametrize(
    ("pods", "pressures", "is_active", "words"),
    [
        ((SERVING,), {"qwen-abc-1": 0.5}, True, "the operator scales by the pressure that it reads"),
        ((SERVING,), {}, False, "no ready replica tells its pressure"),
        ((LOADING,), {}, False, NO_PRESSURE),
        ((), {}, False, NO_PRESSURE),
    ],
)
def test_the_built_in_autoscaler_looks_where_a_replica_tells_its_pressure(
    pods: Any, pressures: dict[str, float], is_active: bool, words: str
) -> None:
    found = told("BuiltIn", an_observed(pods=pods, pressures=pressures))

    assert found.is_active is is_active
    assert words in found.message
