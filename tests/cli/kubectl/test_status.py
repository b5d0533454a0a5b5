"""The tree: every object, what is amiss and why."""

from __future__ import annotations

import datetime
import io
from typing import Any

import pytest
from rich.console import Console

from octavo_cli.errors import CliError
from octavo_cli.kubectl import __main__ as plugin
from octavo_cli.kubectl import status
from octavo_testing import keda
from octavo_testing.keda import a_scaled_object
from octavo_testing.kube_objects import MODELS, FakeCluster, a_condition, a_deployment, a_model, a_pod

NOW = datetime.datetime(2026, 1, 1, 12, 5, tzinfo=datetime.UTC)
UNSCHEDULABLE = a_condition("PodScheduled", "False", "Unschedulable", "0/3 nodes: 3 Insufficient nvidia.com/gpu.")


def told(seen: status.Snapshot) -> list[str]:
    console = Console(width=200, record=True, file=io.StringIO())
    with console.file:
        console.print(status.status_tree(seen, NOW))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_a_waiting_pod_says_why_below_its_revision() -> None:
    why = "1 of 2 replicas ready; pod qwen-r1-b needs 1 nvidia.com/gpu"
    model = a_model(
        "qwen",
        a_condition("Ready", "False", "InsufficientGPU", why),
        a_condition("Available", "True", "SomeReplicasReady", "1 replica takes requests"),
        readyReplicas=1,
        scaling={"desired": 2, "pressure": "0.85"},
        endpoint="http://g/v1",
        servedModels=["qwen", "sql"],
        rollout={"revision": "r1", "admitted": ["r1"]},
    )
    pods = (a_pod("qwen-r1-a"), a_pod("qwen-r1-b", ready=False, conditions=(UNSCHEDULABLE,)))

    lines = told(status.Snapshot(model=model, deployments=[a_deployment("r1", replicas=2)], pods=pods))

    assert lines[0] == "team/qwen  1/2 ready  InsufficientGPU  5m"
    text = "\n".join(lines)
    assert f"├── {why}" in lines
    for line in (
        "├── model hf://org/name",
        "├── serves qwen, sql",
        "├── endpoint http://g/v1",
        "├── pressure 0.85",
        "│   ├── ✘ Ready InsufficientGPU " + why + "  5m",
        "│   └── ✔ Available SomeReplicasReady 1 replica takes requests  5m",
        "└── revision r1  1/2 ready  wanted, gets requests",
        "    ├── qwen-r1-a  Ready  on node0  5m",
    ):
        assert line in lines, text
    assert lines[-1].startswith("    └── qwen-r1-b  InsufficientGPU: ")


def test_a_rollout_shows_both_revisions_and_who_gets_requests() -> None:
    model = a_model(
        "qwen", rollout={"revision": "r2", "admitted": ["r1"], "strategy": "HoldAndSwap", "why": "no GPU free"}
    )
    deployments = [a_deployment("r1"), a_deployment("r2", ready=0)]

    text = "\n".join(told(status.Snapshot(model=model, deployments=deployments, pods=[a_pod("qwen-r1-a")])))

    assert "revision r1  1/1 ready  gets requests" in text
    assert "revision r2  0/1 ready  wanted" in text
    assert "rollout strategy HoldAndSwap" in text
    assert "rollout why no GPU free" in text


def test_a_revision_that_was_rolled_back_says_why() -> None:
    refused = {"revision": "r2", "reason": "MaxHoldExceeded", "message": "no replica within 5m"}
    model = a_model("qwen", rollout={"revision": "r1", "refused": refused})

    assert "└── rolled back r2 MaxHoldExceeded: no replica within 5m" in told(status.Snapshot(model=model))


def test_pods_whose_deployment_is_gone_are_not_lost() -> None:
    draining = a_pod("qwen-r0-a", "r0")
    draining["metadata"]["deletionTimestamp"] = "now"

    text = "\n".join(told(status.Snapshot(model=a_model(), pods=[draining])))

    assert "revision r0  its Deployment is gone" in text
    assert "qwen-r0-a  Draining" in text


def test_restarts_download_cold_start_and_an_operator_that_sleeps_are_told() -> None:
    statuses = [{"name": "server", "restartCount": 3, "state": {"running": {}}}]
    model = a_model(
        download={"bytes": 3_100_000_000, "totalBytes": 14_900_000_000, "progress": "3.1/14.9 GB 42 s"},
        coldStart={"pod": "p", "created": "then", "total": "46s", "load": "9s"},
        capacity={"kvTokensPerReplica": 412000, "maxConcurrent": 256},
    )
    model["metadata"]["generation"] = 3

    text = "\n".join(
        told(
            status.Snapshot(
                model=model, deployments=[a_deployment("r1")], pods=[a_pod("p", containerStatuses=statuses)]
            )
        )
    )

    assert "download 3.1/14.9 GB 42 s" in text
    assert "capacity 412000 tokens of KV cache, 256 sequences a replica" in text
    assert "cold start load 9s, total 46s" in text
    assert "behind the operator has seen generation 2 of 3" in text
    assert "3 restarts" in text


def test_a_resource_that_no_operator_has_seen_is_not_called_ready() -> None:
    model = a_model()
    del model["status"]

    assert told(status.Snapshot(model=model))[0] == "team/qwen  0/1 ready  NotObservedYet  5m"


def test_an_autoscaler_that_cannot_read_and_the_newest_events_are_told() -> None:
    scaler = {
        "metadata": {"name": "qwen"},
        "spec": {"minReplicas": 1, "maxReplicas": 4},
        "status": {
            "currentReplicas": 1,
            "desiredReplicas": 2,
            "conditions": [a_condition("ScalingActive", "False", "FailedGetPodsMetric", "no metrics")],
        },
    }
    events = [
        {
            "metadata": {},
            "type": "Warning",
            "reason": f"R{n}",
            "message": "m",
            "lastTimestamp": f"2026-01-01T12:0{n}:00Z",
        }
        for n in range(5, -1, -1)
    ]

    text = "\n".join(told(status.Snapshot(model=a_model(), scaler=scaler, events=events)))

    assert "autoscaler qwen  1 → 2 of 1…4" in text
    assert "✘ ScalingActive no metrics" in text
    assert "R0 m" not in text
    assert text.index("R1 m") < text.index("R5 m")


KEDAS_HPA = {
    "metadata": {"name": "keda-hpa-qwen"},
    "spec": {"minReplicas": 1, "maxReplicas": 4},
    "status": {"currentReplicas": 1, "desiredReplicas": 2},
}


@pytest.mark.parametrize(
    ("conditions", "shown"),
    [
        (
            (keda.READY, keda.IDLE, keda.FALLBACK, keda.NOT_PAUSED),
            [
                "✔ Ready ScaledObjectReady ScaledObject is defined correctly and is ready for scaling",
                "· Active ScalerNotActive Scaling is not performed because triggers are not active",
            ],
        ),
        (
            (keda.TRIGGER_ERROR, {"type": "Active", "status": "Unknown"}, keda.FALLBACK, keda.PAUSED),
            [
                "✘ Ready TriggerError Triggers defined in ScaledObject are not working correctly",
                "? Active",
                "✘ Paused ScaledObjectPaused ScaledObject is paused",
            ],
        ),
        (
            (keda.READY, keda.ACTIVE, keda.FALLBACK, keda.NOT_PAUSED, keda.HPA_FAILS),
            [
                "✔ Ready ScaledObjectReady ScaledObject is defined correctly and is ready for scaling",
                "✔ Active ScalerActive Scaling is performed because triggers are active",
                "✘ HPAActive FailedGetExternalMetric HPA is not actively scaling: unable to get external metric",
            ],
        ),
        ((), ["✘ KEDA has not looked at it: does its operator run? kubectl octavo doctor"]),
    ],
    ids=["idle", "Prometheus is silent", "metrics do not arrive", "no KEDA"],
)
def test_a_scaled_object_says_whether_keda_scales_by_it_and_why_not(
    conditions: tuple[dict[str, Any], ...], shown: list[str]
) -> None:
    lines = told(status.Snapshot(model=a_model(), scaled_object=a_scaled_object(*conditions), scaler=KEDAS_HPA))

    at = lines.index("└── autoscaler ScaledObject qwen  1…4")
    assert lines[at + 1 :] == [
        *(f"    ├── {line}" for line in shown),
        "    └── autoscaler keda-hpa-qwen  1 → 2 of 1…4",
    ]


def run(cluster: FakeCluster, *arguments: str) -> tuple[int, str]:
    parser = plugin.parser(only="status")
    status.add_arguments(parser.subcommands["status"])
    console = Console(width=160, record=True, quiet=False, file=io.StringIO())
    with console.file:
        code = status.run(cluster, parser.parse_args(["status", *arguments]), console)
    return code, console.export_text()


def a_cluster(**more: Any) -> FakeCluster:
    ready = a_condition("Ready", "True", "AllReplicasReady", "1 of 1 replicas ready")
    return FakeCluster(
        {
            MODELS: [a_model("qwen", ready), a_model("llama", ready)],
            f"{MODELS}/qwen": a_model("qwen", ready),
            "/apis/apps/v1/namespaces/team/deployments": [a_deployment("r1")],
            "/api/v1/namespaces/team/pods": [a_pod("qwen-r1-a")],
            **more,
        }
    )


LISTS = {
    "deployments": "/apis/apps/v1/namespaces/team/deployments",
    "pods": "/api/v1/namespaces/team/pods",
    "autoscalers": "/apis/autoscaling/v2/namespaces/team/horizontalpodautoscalers",
    "ScaledObjects": "/apis/keda.sh/v1alpha1/namespaces/team/scaledobjects",
    "events": "/api/v1/namespaces/team/events",
}


@pytest.mark.parametrize("kind", LISTS)
def test_what_may_not_be_listed_is_left_out_and_named(kind: str) -> None:
    code, text = run(a_cluster(**{LISTS[kind]: 403}), "qwen")

    assert code == 0
    assert "team/qwen" in text
    assert f"not shown, for you may not list them: {kind}\n" in text


def test_however_many_models_there_are_each_kind_is_listed_once() -> None:
    ready = a_condition("Ready", "True", "AllReplicasReady", "1 of 1 replicas ready")
    models = [a_model("qwen", ready), *(a_model(f"m-{number}", ready) for number in range(300))]
    events = [
        {
            "metadata": {"namespace": "team"},
            "involvedObject": {"name": "m-7"},
            "reason": "Slow",
            "lastTimestamp": "2026-01-01T12:00:00Z",
        }
    ]
    cluster = a_cluster(**{MODELS: models, LISTS["events"]: events})

    _, text = run(cluster)

    assert len(cluster.queries) == 1 + len(LISTS)
    trees = text.split("team/")
    assert [tree for tree in trees if "qwen-r1-a" in tree] == [tree for tree in trees if tree.startswith("qwen ")]
    assert [tree for tree in trees if "Slow" in tree] == [tree for tree in trees if tree.startswith("m-7 ")]


def test_a_model_that_is_being_deleted_says_so() -> None:
    model = a_model()
    model["metadata"]["deletionTimestamp"] = "2026-01-01T12:04:00Z"

    assert told(status.Snapshot(model=model))[0].endswith("being deleted")


@pytest.mark.parametrize(("replicas", "mark"), [(0, "·"), (1, "✘")])
def test_an_autoscaler_that_rests_because_its_model_is_at_zero_is_not_amiss(replicas: int, mark: str) -> None:
    model = a_model("qwen", a_condition("ScalingActive", "False", "ScaledToZero"), spec={"replicas": replicas})
    scaler = {
        "metadata": {"name": "qwen"},
        "spec": {"maxReplicas": 4},
        "status": {"conditions": [a_condition("ScalingActive", "False", "ScalingDisabled", "replica count is zero")]},
    }
    scaled = a_scaled_object(keda.READY, keda.HPA_FAILS)

    text = "\n".join(told(status.Snapshot(model=model, scaler=scaler, scaled_object=scaled)))

    assert f"{mark} ScalingActive ScaledToZero" in text
    assert f"{mark} ScalingActive replica count is zero" in text
    assert ("✘ HPAActive" in text) is (replicas == 1)


@pytest.mark.parametrize(("found", "is_shown"), [([a_scaled_object(keda.READY)], True), (403, False), (404, False)])
def test_a_scaled_object_is_read_where_there_is_keda_and_the_right_to_it(found: Any, is_shown: bool) -> None:
    code, text = run(a_cluster(**{"/apis/keda.sh/v1alpha1/namespaces/team/scaledobjects": found}), "qwen")

    assert code == 0
    assert ("autoscaler ScaledObject qwen" in text) is is_shown


def test_without_a_name_every_model_of_the_namespace_is_shown() -> None:
    _, text = run(a_cluster())

    assert "team/qwen" in text
    assert "team/llama" in text


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ({MODELS: [a_model("llama")]}, "namespace team has no ModelDeployment 'qwen'; it has llama"),
        ({MODELS: []}, "namespace team has no ModelDeployment 'qwen'; it has none"),
        ({}, "this cluster has no ModelDeployments; install the chart"),
    ],
)
def test_a_model_that_is_not_there_names_what_is(objects: dict[str, Any], said: str) -> None:
    with pytest.raises(CliError, match=said.replace("(", r"\(")):
        run(FakeCluster(objects), "qwen")
