"""What is read from ModelDeployments and pods, and what table it makes."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_gateway.endpoints import Strategy
from octavo_gateway.kube_objects import build_table, duration_s, read_model, read_pod
from octavo_gateway.quota import Limits


def a_deployment(name: str = "qwen", **parts: Any) -> dict[str, Any]:
    metadata = {"namespace": "default", "name": name, "creationTimestamp": "2026-01-02T03:04:05Z", "uid": f"uid-{name}"}
    return {"metadata": {**metadata, "resourceVersion": "7"}, "spec": {"model": "hf://a/b"}, **parts}


def a_pod(name: str = "qwen-1", *, ready: bool = True, revision: str = "r1", **parts: Any) -> dict[str, Any]:
    labels = {"octavo.dev/modeldeployment": "qwen", "octavo.dev/revision": revision}
    conditions = [{"type": "Ready", "status": str(ready)}, {"type": "PodScheduled", "status": "True"}]
    return {
        "metadata": {"namespace": "default", "name": name, "labels": labels, **parts.pop("metadata", {})},
        "spec": {"containers": [{"name": "server", "ports": [{"name": "http", "containerPort": 8000}]}]},
        "status": {"phase": "Running", "podIP": "10.0.0.7", "conditions": conditions},
        **parts,
    }


def routed(deployment: dict[str, Any], *pods: dict[str, Any]) -> list[str]:
    """Pods that the model is routed to."""
    found = [facts for pod in pods if (facts := read_pod(pod)) is not None]
    table = build_table([read_model(deployment)], found, is_complete=True)
    return [replica.pod for replica in table.models["default/qwen"].replicas if replica.is_routable]


def test_a_resource_of_one_field_serves_its_own_name() -> None:
    model = read_model(a_deployment()).model

    assert (model.key, model.served_names) == ("default/qwen", ("qwen",))
    assert (model.max_held, model.hold_timeout_s) == (256, 600.0)
    assert (model.is_scaled_to_zero, model.can_wake) == (False, False)
    assert (model.created_s, model.uid, model.resource_version) == (1767323045.0, "uid-qwen", "")


def test_routing_is_read() -> None:
    routing = {"maxHeldRequests": 0, "holdTimeout": "1h30m"}
    model = read_model(a_deployment(spec={"servedNames": ["a", "b"], "routing": routing})).model

    assert (model.served_names, model.max_held, model.hold_timeout_s) == (("a", "b"), 0, 5400.0)


@pytest.mark.parametrize(
    ("spec", "strategy"),
    [
        ({}, Strategy.PREFIX_AFFINITY),
        ({"routing": {"strategy": "Auto"}}, Strategy.PREFIX_AFFINITY),
        ({"engine": {"prefixCaching": False}}, Strategy.LEAST_PRESSURE),
        ({"engine": {"prefixCaching": False}, "routing": {"strategy": "PrefixAffinity"}}, Strategy.PREFIX_AFFINITY),
        ({"routing": {"strategy": "RoundRobin"}}, Strategy.ROUND_ROBIN),
        ({"routing": {"strategy": "LeastPressure"}}, Strategy.LEAST_PRESSURE),
    ],
)
def test_auto_keeps_conversations_together_where_prefixes_are_cached(spec: dict[str, Any], strategy: Strategy) -> None:
    model = read_model(a_deployment(spec=spec)).model

    assert (model.strategy, model.service_url) == (strategy, "http://qwen.default.svc:8000")


@pytest.mark.parametrize(
    ("given", "audit"), [({}, "Metadata"), ({"audit": "None"}, "None"), ({"audit": "Full"}, "Full")]
)
def test_what_is_written_down_is_read(given: dict[str, Any], audit: str) -> None:
    assert read_model(a_deployment(spec={"access": given})).model.access.audit.value == audit


def test_limits_are_read() -> None:
    access = {"keysFrom": [{"secretRef": {"name": "a"}}], "tokensPerMinute": 5, "tokensPerDay": 7}

    assert read_model(a_deployment(spec={"access": access})).model.access.limits == Limits(per_minute=5, per_day=7)


def test_keys_come_from_secrets_of_the_models_namespace() -> None:
    access = {"keysFrom": [{"secretRef": {"name": "a"}}, {"secretRef": {"name": "b"}}]}

    model = read_model(a_deployment(spec={"access": access})).model

    assert model.key_secrets == ("default/a", "default/b")
    assert model.access.limits == Limits()
    assert read_model(a_deployment()).model.key_secrets == ()


@pytest.mark.parametrize(
    ("spec", "needs_wake", "is_off"),
    [
        ({"replicas": 0, "scaling": {"maxReplicas": 2}}, True, False),
        ({"replicas": 1, "scaling": {"maxReplicas": 2}}, False, False),
        ({"scaling": {"maxReplicas": 2}}, False, False),
        ({"replicas": 0}, False, True),
        ({"replicas": 0, "scaling": {"maxReplicas": 2}, "suspend": True}, False, True),
    ],
)
def test_only_a_scaled_model_at_zero_that_is_not_suspended_is_woken(
    spec: dict[str, Any], needs_wake: bool, is_off: bool
) -> None:
    model = read_model(a_deployment(spec=spec)).model

    assert (model.needs_wake, model.is_switched_off) == (needs_wake, is_off)
    assert model.resource_version == ("7" if needs_wake else "")


def test_a_ready_pod_is_routed_to_at_its_port() -> None:
    pod = read_pod(a_pod())

    assert pod is not None
    assert (pod.model_key, pod.replica.url, pod.replica.revision) == ("default/qwen", "http://10.0.0.7:8000", "r1")
    assert routed(a_deployment(), a_pod()) == ["qwen-1"]


def test_an_ipv6_address_gets_brackets_and_an_unnamed_port_the_servers_own() -> None:
    pod = read_pod({**a_pod(), "spec": {"containers": [{"name": "server"}]}, "status": {"podIP": "fd00::1"}})

    assert pod is not None
    assert pod.replica.url == "http://[fd00::1]:8000"


def test_a_sidecars_port_is_not_the_servers() -> None:
    containers = [
        {"name": "sidecar", "ports": [{"name": "http", "containerPort": 9}]},
        {"name": "server", "ports": [{"name": "http", "containerPort": 8123}]},
    ]
    pod = read_pod({**a_pod(), "spec": {"containers": containers}})

    assert pod is not None
    assert pod.replica.url.endswith(":8123")


def test_a_pod_leaves_at_its_deletion_timestamp_though_it_is_ready() -> None:
    leaving = a_pod("leaving", metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})

    assert routed(a_deployment(), leaving, a_pod("staying")) == ["staying"]


def test_a_pod_that_is_not_ready_is_not_routed_to() -> None:
    assert routed(a_deployment(), a_pod("loading", ready=False)) == []


@pytest.mark.parametrize(
    "status",
    [{"phase": "Pending"}, {"phase": "Failed", "podIP": "10.0.0.7"}, {"phase": "Succeeded", "podIP": "1.1.1.1"}],
)
def test_a_pod_without_address_or_at_its_end_is_none(status: dict[str, Any]) -> None:
    assert read_pod({**a_pod(), "status": status}) is None


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"rollout": {"admitted": ["r1"]}}, ["old"]),
        ({"rollout": {"admitted": ["r1", "r2"]}}, ["new", "old"]),
        ({"rollout": {"admitted": []}}, ["new", "old"]),
        ({"rollout": {}}, ["new", "old"]),
        ({}, ["new", "old"]),
    ],
)
def test_only_admitted_revisions_are_routed_to(status: dict[str, Any], expected: list[str]) -> None:
    pods = (a_pod("old", revision="r1"), a_pod("new", revision="r2"))

    assert routed(a_deployment(status=status), *pods) == expected


def test_pods_of_another_namespace_are_not_the_models() -> None:
    assert routed(a_deployment(), a_pod(metadata={"namespace": "other"})) == []


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("500ms", 0.5), ("1.5s", 1.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "10x", "-1s", "1s 2s", "1sx"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        duration_s(text)
