"""What `doctor` finds of autoscalers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from octavo_cli.kubectl import doctor
from octavo_cli.kubectl.checks import judge
from octavo_testing import keda
from octavo_testing.doctor import HEALTHY, NOW, a_release, outcome
from octavo_testing.keda import a_scaled_object
from octavo_testing.kube_objects import FakeCluster, a_model

WITH_ADDRESS = [a_release("operator", args=["--prometheus-address=http://p:9090", "--metrics-adapter=false"])]
THERE = {"serves_keda": True, "keda_operators": [a_release("keda-operator", namespace="keda")]}
DOWN = [a_release("keda-operator", namespace="keda", ready=0)]


def a_scaled_model(backend: str) -> dict[str, Any]:
    return a_model("qwen", spec={"scaling": {"maxReplicas": 4, "backend": backend}})


@pytest.mark.parametrize(
    ("facts", "level", "said"),
    [
        ({}, "fail", "the operator has no --prometheus-address; qwen cannot be scaled"),
        ({"operators": WITH_ADDRESS}, "fail", "the cluster has no API keda.sh; qwen cannot be scaled"),
        ({"operators": []}, "fail", "the cluster has no API keda.sh; qwen cannot be scaled"),
        ({"operators": WITH_ADDRESS, "models": []}, "warn", "no API keda.sh; models of scaling.backend KEDA could"),
        ({"operators": WITH_ADDRESS, **THERE}, "ok", "keda/octavo-keda-operator: 1 of 1 ready"),
        ({"operators": WITH_ADDRESS, **THERE, "keda_operators": DOWN}, "fail", "0 of 1 ready; qwen cannot be scaled"),
        ({"operators": WITH_ADDRESS, **THERE, "keda_operators": []}, "fail", "no Deployment keda-operator is found"),
        ({"operators": WITH_ADDRESS, **THERE, "keda_operators": None}, "skip", "may not be looked for"),
    ],
)
def test_where_keda_is_wanted_it_is_said_what_of_it_is_missing(facts: dict[str, Any], level: str, said: str) -> None:
    found = outcome("KEDA", **{"models": [a_scaled_model("KEDA")], **facts})

    assert (found.level, said in found.message) == (level, True), found
    assert found.remedy or level in ("ok", "skip")


@pytest.mark.parametrize(
    ("backend", "facts", "is_wanted"),
    [
        ("Auto", {"metrics": None, "metrics_service": None}, True),
        ("Auto", {"metrics": None, "metrics_service": None, "serves_keda": False}, False),
        ("Auto", {}, False),
        ("HPA", {"metrics": None, "metrics_service": None}, False),
        ("BuiltIn", {"metrics": None, "metrics_service": None}, False),
    ],
)
def test_auto_wants_keda_where_it_comes_to_it(backend: str, facts: dict[str, Any], is_wanted: bool) -> None:
    """What is there by the chart's word and wanted by no model is worth a warning at most."""
    world = {"operators": WITH_ADDRESS, **THERE, "keda_operators": [], "models": [a_scaled_model(backend)], **facts}

    assert outcome("KEDA", **world).level == ("fail" if is_wanted else "warn")


@pytest.mark.parametrize("model", [a_model(), a_scaled_model("HPA"), a_scaled_model("Auto")])
def test_nothing_is_said_of_keda_where_nobody_wants_it(model: dict[str, Any]) -> None:
    assert [each for each in judge(replace(HEALTHY, models=[model]), NOW) if each.check == "KEDA"] == []


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ((keda.READY, keda.IDLE), None),
        ((keda.TRIGGER_ERROR, keda.IDLE), "Ready is False: Triggers defined in ScaledObject are not working"),
        ((keda.READY, keda.ACTIVE, keda.HPA_FAILS), "HPAActive is False: HPA is not actively scaling"),
        ((), None),
    ],
)
def test_a_scaled_object_that_keda_cannot_scale_by_is_told(conditions: tuple[Any, ...], said: str | None) -> None:
    facts = {"operators": WITH_ADDRESS, **THERE, "models": [a_scaled_model("KEDA")]}

    judged = judge(replace(HEALTHY, **facts, scaled_objects=[a_scaled_object(*conditions)]), NOW)

    found = [each for each in judged if each.check == "ScaledObject qwen"]
    assert [each.level for each in found] == (["warn"] if said else [])
    assert all(str(said) in each.message and each.remedy for each in found)


@pytest.mark.parametrize(
    ("conditions", "told"), [((keda.READY, keda.HPA_FAILS), []), ((keda.TRIGGER_ERROR, keda.HPA_FAILS), ["Ready"])]
)
def test_a_model_that_stands_at_zero_on_purpose_needs_no_metric(conditions: tuple[Any, ...], told: list[str]) -> None:
    model = a_scaled_model("KEDA")
    model["spec"]["replicas"] = 0
    facts = {"operators": WITH_ADDRESS, **THERE, "models": [model]}

    judged = judge(replace(HEALTHY, **facts, scaled_objects=[a_scaled_object(*conditions)]), NOW)

    found = [each.message for each in judged if each.check == "ScaledObject qwen"]
    assert [message.split()[0] for message in found] == told
    assert "HPAActive" not in "".join(found)


@pytest.mark.parametrize(("api", "is_served"), [(404, False), ({}, True)])
@pytest.mark.parametrize(("objects", "read"), [(403, None), (404, []), ([a_scaled_object()], [a_scaled_object()])])
def test_keda_is_looked_for(api: Any, is_served: bool, objects: Any, read: Any) -> None:
    group = "/apis/keda.sh/v1alpha1"
    cluster = FakeCluster({"/version": {}, group: api, f"{group}/namespaces/team/scaledobjects": objects})
    cluster.answer = lambda method, path, body: {"status": {"allowed": True}}

    facts = doctor.gather(cluster)

    assert (facts.serves_keda, facts.scaled_objects) == (is_served, read)
    assert {"labelSelector": "app.kubernetes.io/name=keda-operator"} in cluster.queries
