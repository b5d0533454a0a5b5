"""Which autoscaler a resource gets, what its object says, and that one follows another without two at a time."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.desired.scaler import Scaler, ScalingApis, choose_scaler, render_scaler
from octavo_testing.apiserver import ApiServer, BinariesMissingError
from octavo_testing.chart import PATHS, install_optional_kinds
from octavo_testing.control_plane import a_resource
from octavo_testing.rollout_cluster import Cluster, a_cluster

PROMETHEUS = "http://prometheus.monitoring:9090"
HPA, SCALED_OBJECT = ("HorizontalPodAutoscaler", "qwen"), ("ScaledObject", "qwen")
WITH_KEDA = ScalingApis(has_custom_metrics=False, prometheus=PROMETHEUS)
WITHOUT = ScalingApis(has_custom_metrics=False, keda_trouble="no KEDA")


@pytest.mark.parametrize(
    ("backend", "apis", "kind", "trouble"),
    [
        ("Auto", ScalingApis(prometheus=PROMETHEUS), "HPA", ""),
        ("Auto", WITH_KEDA, "KEDA", ""),
        ("Auto", WITHOUT, "BuiltIn", ""),
        ("HPA", WITHOUT, "HPA", ""),
        ("KEDA", ScalingApis(prometheus=PROMETHEUS), "KEDA", ""),
        ("KEDA", WITHOUT, "KEDA", "no KEDA"),
        ("BuiltIn", ScalingApis(prometheus=PROMETHEUS), "BuiltIn", ""),
    ],
)
def test_auto_takes_the_first_that_the_cluster_has_and_a_name_is_a_name(
    backend: str, apis: ScalingApis, kind: str, trouble: str
) -> None:
    chosen = choose_scaler(a_resource(scaling={"maxReplicas": 2, "backend": backend}), apis)

    assert (chosen.kind, chosen.trouble) == (kind, trouble)


def a_scaled_object(**scaling: Any) -> dict[str, Any]:
    resource = a_resource(scaling={"maxReplicas": 4, **scaling}, replicas=1)
    found = render_scaler(resource, Scaler(kind="KEDA", prometheus=PROMETHEUS))
    assert found is not None
    return found


def test_the_real_api_server_takes_the_scaled_object(apiserver: ApiServer) -> None:
    """By KEDA's own CustomResourceDefinition; KEDA itself is not there."""
    try:
        install_optional_kinds(apiserver)
    except BinariesMissingError as error:
        pytest.skip(str(error))
    manifest = a_scaled_object(behavior={"scaleDown": {"stabilizationWindowSeconds": 5}})
    path = f"{PATHS['ScaledObject'].format(namespace='default')}?dryRun=All&fieldValidation=Strict"

    answer = apiserver.request("POST", path, manifest)

    assert answer.status == 201, answer.message
    manifest["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleUp"]["policy"] = []
    assert apiserver.request("POST", path, manifest).status == 400, "it would take anything"


def test_a_scaled_object_scales_the_resource_by_the_sum_of_pressures() -> None:
    spec = a_scaled_object(minReplicas=0, targetPressure="1.5")["spec"]

    assert spec["scaleTargetRef"] == {"apiVersion": "octavo.dev/v1alpha1", "kind": "ModelDeployment", "name": "qwen"}
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, 4), "zero stays the operator's"
    assert spec["triggers"] == [
        {
            "type": "prometheus",
            "metricType": "AverageValue",
            "metadata": {
                "serverAddress": PROMETHEUS,
                "query": 'sum(octavo_kv_pressure_ratio{namespace="default", modeldeployment="qwen"})',
                "threshold": "1.5",
                "ignoreNullValues": "false",
            },
        }
    ]


def test_its_behavior_is_that_of_the_hpa() -> None:
    down = {"stabilizationWindowSeconds": 5, "policies": [{"type": "Pods", "value": 2, "periodSeconds": 5}]}
    resource = a_resource(scaling={"maxReplicas": 4, "behavior": {"scaleDown": down}}, replicas=1)
    hpa = render_scaler(resource, Scaler())
    assert hpa is not None

    keda = a_scaled_object(behavior={"scaleDown": down})["spec"]["advanced"]["horizontalPodAutoscalerConfig"]

    assert keda == {"behavior": hpa["spec"]["behavior"]}
    assert keda["behavior"]["scaleDown"] == down


def test_at_zero_there_is_none_because_keda_would_wake_the_model() -> None:
    asleep = a_resource(scaling={"minReplicas": 0, "maxReplicas": 4}, replicas=0)

    assert render_scaler(asleep, Scaler(kind="KEDA", prometheus=PROMETHEUS)) is None
    assert render_scaler(asleep, Scaler()) is not None, "an HPA rests at zero by itself"


# From one to another


def scalers(cluster: Cluster) -> set[tuple[str, str]]:
    return {key for key in cluster.objects if key in (HPA, SCALED_OBJECT)}


def test_one_autoscaler_goes_before_another_comes() -> None:
    cluster = a_cluster(gpus=8, replicas=1, scaling={"maxReplicas": 4, "backend": "HPA"})
    cluster.scaling_apis = WITH_KEDA
    assert scalers(cluster) == {HPA}

    for backend, expected in [("KEDA", {SCALED_OBJECT}), ("HPA", {HPA}), ("BuiltIn", set()), ("KEDA", {SCALED_OBJECT})]:
        cluster.writes.clear()
        cluster.edit(scaling={"maxReplicas": 4, "backend": backend})
        cluster.reconcile()
        cluster.reconcile()

        assert scalers(cluster) == expected
        changes = [each for each in cluster.writes if "Scale" in each or "Autoscaler" in each]
        assert changes == sorted(changes, key=lambda each: each.startswith("apply")), "first one went"


def test_auto_follows_what_the_cluster_has() -> None:
    cluster = a_cluster(gpus=8, replicas=1, scaling={"maxReplicas": 4})
    assert scalers(cluster) == {HPA}

    for apis, expected in [(WITH_KEDA, {SCALED_OBJECT}), (WITHOUT, set()), (ScalingApis(), {HPA})]:
        cluster.scaling_apis = apis
        cluster.reconcile()
        cluster.reconcile()

        assert scalers(cluster) == expected


def test_a_sleeping_model_has_no_scaled_object_and_gets_one_when_it_wakes() -> None:
    cluster = a_cluster(gpus=8, replicas=1, scaling={"minReplicas": 0, "maxReplicas": 4, "backend": "HPA"})
    cluster.scaling_apis = WITH_KEDA
    cluster.edit(scaling={"minReplicas": 0, "maxReplicas": 4, "backend": "KEDA"})
    for replicas, expected in [(1, {SCALED_OBJECT}), (0, set()), (1, {SCALED_OBJECT})]:
        cluster.edit(replicas=replicas)
        cluster.reconcile()
        cluster.reconcile()

        assert scalers(cluster) == expected


def test_what_is_lacking_for_a_backend_is_a_condition_and_nothing_else_scales() -> None:
    cluster = a_cluster(gpus=8, replicas=2, scaling={"maxReplicas": 4})
    cluster.scaling_apis = WITHOUT
    cluster.edit(scaling={"maxReplicas": 4, "backend": "KEDA"})

    cluster.reconcile()
    cluster.reconcile()

    assert scalers(cluster) == set()
    active = cluster.condition("ScalingActive")
    assert (active["status"], active["reason"], active["message"]) == ("False", "ScalerUnavailable", "no KEDA")
    assert cluster.condition("Ready")["status"] == "True"
    assert cluster.wanted == 2


def test_keda_is_named_where_it_asked() -> None:
    cluster = a_cluster(gpus=8, replicas=1, scaling={"maxReplicas": 4})
    cluster.scaling_apis = WITH_KEDA
    cluster.reconcile()
    cluster.edit(replicas=3)
    cluster.reconcile()

    assert cluster.manifest["status"]["scaling"]["decisions"][0]["reason"] == "KEDA asks for 3"
