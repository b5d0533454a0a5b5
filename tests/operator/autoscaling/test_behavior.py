"""`scaling.behavior` for the built-in autoscaler: what it says, what an HPA would default, and what neither takes."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.api.types import Scaling
from octavo_operator.autoscaling.behavior import Behavior, Policy, Rules, read_behavior
from octavo_operator.desired.hpa import render_hpa
from octavo_operator.errors import SpecInvalidError
from octavo_testing.apiserver import ApiServer
from octavo_testing.control_plane import a_resource

HPAS = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers"


def read(**behavior: Any) -> Behavior:
    return read_behavior(Scaling(max_replicas=4, behavior=behavior))


def test_what_the_resource_leaves_out_is_as_octavo_has_it() -> None:
    assert read() == Behavior(
        up=Rules(window_s=0, select="Max", policies=(Policy(is_percent=True, value=900, period_s=15),)),
        down=Rules(window_s=300, select="Max", policies=(Policy(is_percent=False, value=1, period_s=120),)),
    )


def test_all_that_a_side_says_is_read() -> None:
    up = {
        "stabilizationWindowSeconds": 30,
        "selectPolicy": "Min",
        "policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}],
        "tolerance": "50m",
    }

    policies = (Policy(is_percent=False, value=2, period_s=60),)
    assert read(scaleUp=up).up == Rules(window_s=30, select="Min", policies=policies, tolerance=0.05)


@pytest.mark.parametrize("side", ["scaleUp", "scaleDown"])
def test_what_a_side_leaves_out_is_as_the_api_server_would_default_it(apiserver: ApiServer, side: str) -> None:
    """`selectPolicy: Max` alone says nothing, so all else is a default."""
    scaling = Scaling(max_replicas=4, behavior={side: {"selectPolicy": "Max"}})
    manifest = render_hpa(a_resource(), scaling)

    found = apiserver.request("POST", f"{HPAS}?dryRun=All", manifest).body["spec"]["behavior"][side]

    rules = getattr(read_behavior(scaling), side.removeprefix("scale").lower())
    # The controller's own default stands where the API server sets none.
    assert found.get("stabilizationWindowSeconds", 300) == rules.window_s
    assert sorted((each["type"], each["value"], each["periodSeconds"]) for each in found["policies"]) == sorted(
        ("Percent" if each.is_percent else "Pods", each.value, each.period_s) for each in rules.policies
    )


@pytest.mark.parametrize("tolerance", ["0", 0, 0.05])
def test_the_bounds_themselves_are_taken(apiserver: ApiServer, tolerance: object) -> None:
    policy = {"type": "Pods", "value": 2**31 - 1, "periodSeconds": 1800}
    rules = {"stabilizationWindowSeconds": 3600, "policies": [policy], "tolerance": tolerance}

    policies = (Policy(is_percent=False, value=2**31 - 1, period_s=1800),)
    assert read(scaleDown=rules).down == Rules(
        window_s=3600, select="Max", policies=policies, tolerance=float(str(tolerance))
    )
    manifest = render_hpa(a_resource(), Scaling(max_replicas=4, behavior={"scaleDown": rules}))
    assert apiserver.request("POST", f"{HPAS}?dryRun=All&fieldValidation=Strict", manifest).status == 201


WRONG = {
    "window": ({"stabilizationWindowSeconds": 3601}, "scaleUp.stabilizationWindowSeconds: is 3601"),
    "no window": ({"stabilizationWindowSeconds": -1}, "scaleUp.stabilizationWindowSeconds"),
    "select": ({"selectPolicy": "Most"}, "scaleUp.selectPolicy: is 'Most', must be one of Max, Min, Disabled"),
    "no policy": ({"policies": []}, "scaleUp.policies: must be a list of at least one policy"),
    "no list": ({"policies": {"type": "Pods"}}, "scaleUp.policies: must be a list of at least one policy"),
    "type": (
        {"policies": [{"type": "Nodes", "value": 1, "periodSeconds": 1}]},
        "scaleUp.policies[0].type: is 'Nodes', must be one of Pods, Percent",
    ),
    "no type": ({"policies": [{"value": 1, "periodSeconds": 1}]}, "scaleUp.policies[0].type"),
    "no value": ({"policies": [{"type": "Pods", "periodSeconds": 1}]}, "scaleUp.policies[0].value: is required"),
    "nothing": ({"policies": [{"type": "Pods", "value": 0, "periodSeconds": 1}]}, "scaleUp.policies[0].value: is 0"),
    "too much": (
        {"policies": [{"type": "Pods", "value": 2**31, "periodSeconds": 1}]},
        "scaleUp.policies[0].value: is 2147483648",
    ),
    "no time": (
        {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 0}]},
        "scaleUp.policies[0].periodSeconds: is 0, must be from 1 to 1800",
    ),
    "no period": ({"policies": [{"type": "Pods", "value": 1}]}, "scaleUp.policies[0].periodSeconds: is required"),
    "period": (
        {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 1801}]},
        "scaleUp.policies[0].periodSeconds: is 1801, must be from 1 to 1800",
    ),
    "unknown": ({"policy": []}, "scaleUp.policy: unknown field"),
    "unknown in a policy": (
        {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 1, "every": 1}]},
        "scaleUp.policies[0].every: unknown field",
    ),
    "words": ({"tolerance": "little"}, "scaleUp.tolerance: 'little' is no quantity"),
    "tolerance": ({"tolerance": "-1"}, "scaleUp.tolerance: '-1' is no quantity of 0 or more"),
}


@pytest.mark.parametrize(("rules", "words"), WRONG.values(), ids=WRONG.keys())
def test_what_an_hpa_would_not_take_is_refused_by_its_field(
    apiserver: ApiServer, rules: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecInvalidError) as told:
        read(scaleUp=rules)

    assert f"spec.scaling.behavior.{words}" in str(told.value)
    manifest = render_hpa(a_resource(), Scaling(max_replicas=4, behavior={"scaleUp": rules}))
    answer = apiserver.request("POST", f"{HPAS}?dryRun=All&fieldValidation=Strict", manifest)
    assert answer.status in (400, 422), "the API server would take it"
