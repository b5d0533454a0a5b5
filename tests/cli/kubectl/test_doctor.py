"""Each check: what it finds, how grave that is, and what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from octavo_cli.kubectl import __main__ as plugin
from octavo_cli.kubectl import doctor
from octavo_cli.kubectl.checks import judge
from octavo_testing.doctor import (
    BROKEN_SERVICE,
    CLAIMS,
    H200,
    HEALTHY,
    L4,
    LIST_PODS,
    NOW,
    a_gpu_model,
    a_lease,
    a_node,
    a_plugin,
    a_quota,
    a_release,
    outcome,
)
from octavo_testing.kube_objects import FakeCluster, a_condition, a_model


def test_a_healthy_cluster_passes_every_check() -> None:
    assert {each.level for each in judge(HEALTHY, NOW)} == {"ok"}


@pytest.mark.parametrize(
    ("check", "facts", "level", "said"),
    [
        ("version", {"version": {"major": "1", "minor": "29+", "gitVersion": "v1.29.1"}}, "fail", "1.29.1"),
        ("version", {"version": {"major": "1", "minor": "30", "gitVersion": "v1.30.0"}}, "ok", "1.30.0"),
        ("CRD", {"is_served": False, "crd": None}, "fail", "not served"),
        ("CRD", {"crd": None}, "ok", "is served"),
        (
            "CRD",
            {"crd": {"metadata": {"annotations": {"octavo.dev/chart-version": "0.0.9"}}}},
            "warn",
            "of chart 0.0.9",
        ),
        ("operator", {"operators": []}, "fail", "no Deployment of the operator"),
        ("operator", {"operators": [a_release("operator", ready=0)]}, "fail", "0 of 1 ready"),
        ("operator", {"operators": [a_release("operator"), a_release("operator", namespace="b")]}, "warn", "also b/"),
        ("gateway", {"gateways": [a_release("gateway", ready=0)]}, "fail", "no request is routed"),
        ("models of team", {}, "ok", "none yet"),
        ("models of team", {"sees_models": False}, "skip", "ModelDeployments may not be listed"),
        ("leader", {"leases": None}, "skip", "may not be read"),
        ("leader", {"leases": [a_lease(renewed="")]}, "fail", "never renewed"),
        ("leader", {"leases": []}, "fail", "no operator has taken the Lease"),
        ("leader", {"leases": [a_lease(renewed="2026-01-01T12:04:00.000000Z")]}, "fail", "60 s ago; nobody writes"),
        ("rights of the operator", {"rights": {LIST_PODS: False}}, "fail", "may not list pods in all namespaces"),
        ("rights of the operator", {"rights": {LIST_PODS: None}}, "skip", "you may not ask"),
        ("rights of you", {"rights": {replace(LIST_PODS, who="you", namespace="team"): False}}, "warn", "pods in team"),
        ("GPUs", {}, "ok", "16 nvidia.com/gpu on 2 nodes (14 free)"),
        ("GPUs", {"nodes": None}, "skip", "may not be listed"),
        ("GPUs", {"nodes": [a_node(nvidia_com__gpu="0")]}, "warn", "no node offers a GPU"),
        ("GPUs", {"nodes": [a_node(cordoned=True, nvidia_com__gpu="8")]}, "warn", "no node offers a GPU"),
        ("GPUs", {"nodes": [a_node(labels={"nvidia.com/gpu.present": "true"})]}, "fail", "n0 have GPUs, but no node"),
        (
            "GPUs",
            {"nodes": [a_node()], "daemon_sets": [{"metadata": {"name": "nvidia-device-plugin-ds"}}]},
            "fail",
            "device plugin nvidia-device-plugin-ds is installed",
        ),
        ("GPUs", {"nodes": [a_node(amd_com__gpu="4")]}, "ok", "4 amd.com/gpu on 1 node (4 free)"),
        (
            "GPUs",
            {"nodes": [a_node(labels=L4, nvidia_com__gpu="1"), a_node("n1", labels=H200, nvidia_com__gpu="8")]},
            "ok",
            "9 nvidia.com/gpu on 2 nodes (7 free); products by nodes: NVIDIA-H200 (1), NVIDIA-L4 (1)",
        ),
        ("GPUs", {"nodes": [a_node(amd_com__cpx="1")]}, "warn", "no node offers a GPU"),
        (
            "GPUs",
            {"nodes": [{**a_node(), "status": {"allocatable": {"amd.com/cpx_nps4": "8"}}}]},
            "ok",
            "8 amd.com/cpx_nps4 on 1 node",
        ),
        ("device plugin", {"daemon_sets": [a_plugin(2)]}, "ok", "gpus/nvidia-device-plugin-ds: 2 of 2 pods ready"),
        ("device plugin", {"daemon_sets": [a_plugin(1)]}, "warn", "1 of 2 pods ready; the GPUs of the other nodes"),
        (
            "GPUs of qwen",
            {"models": [a_gpu_model(count=16)]},
            "warn",
            "a replica needs 16 nvidia.com/gpu of one node; the largest, n0, has 8",
        ),
        (
            "GPUs of qwen",
            {
                "models": [a_gpu_model(count=2, product="NVIDIA-H200")],
                "nodes": [a_node(nvidia_com__gpu="8", labels=L4), a_node("n1", labels=H200, nvidia_com__gpu="1")],
            },
            "warn",
            "needs 2 nvidia.com/gpu of one node of NVIDIA-H200; the largest, n1, has 1",
        ),
        (
            "GPUs of qwen",
            {"models": [a_gpu_model(product="NVIDIA-H200")], "nodes": [a_node(nvidia_com__gpu="8", labels=L4)]},
            "warn",
            "no node has the product NVIDIA-H200; products by nodes: NVIDIA-L4 (1)",
        ),
        (
            "GPUs of qwen",
            {"models": [a_gpu_model()], "nodes": [a_node(cordoned=True, nvidia_com__gpu="8")]},
            "warn",
            "a replica needs 1 nvidia.com/gpu of one node; none takes pods",
        ),
        (
            "claims of qwen",
            {"models": [a_gpu_model(claims=CLAIMS)], "serves_claims": False},
            "fail",
            "resource.k8s.io/v1 is not served",
        ),
        (
            "claims of qwen",
            {"models": [a_gpu_model(claims=CLAIMS)], "claim_templates": None},
            "skip",
            "ResourceClaimTemplates may not be listed",
        ),
        (
            "claims of qwen",
            {"models": [a_gpu_model(claims=CLAIMS)], "claim_templates": [{"metadata": {"name": "one"}}]},
            "fail",
            "namespace team has no ResourceClaimTemplate two-large; it has one",
        ),
        (
            "claims of qwen",
            {"models": [a_gpu_model(claims=CLAIMS)], "claim_templates": [{"metadata": {"name": "two-large"}}]},
            "ok",
            "1 made from templates that are there",
        ),
        ("metrics API", {"metrics_service": None, "metrics": None}, "warn", "could not be scaled"),
        ("metrics API", {"metrics": ["pods/other"]}, "warn", "but not octavo_kv_pressure_ratio"),
        (
            "metrics API",
            {"metrics": None, "metrics_service": None, "models": [a_model(spec={"scaling": {"maxReplicas": 2}})]},
            "fail",
            "qwen cannot be scaled",
        ),
        *(
            (
                "metrics API",
                {
                    "metrics": None,
                    "metrics_service": service,
                    "models": [a_model(spec={"scaling": {"maxReplicas": 2, "backend": backend}})],
                    "operators": [a_release("operator", args=[f"--metrics-adapter={adapter}"])],
                },
                level,
                "qwen cannot be scaled" if level == "fail" else "models of scaling.backend HPA could not be scaled",
            )
            for backend, adapter, service, level in (
                ("HPA", "false", None, "fail"),
                ("Auto", "auto", None, "fail"),
                ("Auto", "false", BROKEN_SERVICE, "fail"),
                ("Auto", "false", None, "warn"),
                ("KEDA", "auto", BROKEN_SERVICE, "warn"),
                ("BuiltIn", "auto", None, "warn"),
            )
        ),
        (
            "metrics API",
            {"metrics_service": BROKEN_SERVICE},
            "warn",
            "does not answer the API server: no route",
        ),
        ("quotas of team", {"quotas": None}, "skip", "may not be listed"),
        (
            "quotas of team",
            {
                "quotas": [
                    {
                        "metadata": {"name": "q"},
                        "status": {
                            "hard": {"requests.nvidia.com/gpu": "2", "pods": "10", "secrets": "1"},
                            "used": {"requests.nvidia.com/gpu": "2", "pods": "9", "secrets": "1"},
                        },
                    }
                ]
            },
            "fail",
            "spent: q: requests.nvidia.com/gpu 2 of 2",
        ),
        (
            "quotas of team",
            {
                "quotas": [
                    {"metadata": {"name": "q"}, "status": {"hard": {"memory": "1Gi"}, "used": {"memory": "900Mi"}}}
                ]
            },
            "ok",
            "1 with room left",
        ),
        (
            "quotas of team",
            {"quotas": [a_quota("4", "2")], "models": [a_gpu_model(count=4)]},
            "warn",
            "q has 2 of requests.nvidia.com/gpu left, a replica of qwen takes 4",
        ),
        ("quotas of team", {"quotas": [a_quota("4", "2")], "models": [a_gpu_model(count=2)]}, "ok", "room left"),
        (
            "quotas of team",
            {"quotas": [a_quota("4", "2")], "models": [a_gpu_model(count=4, claims=CLAIMS)]},
            "ok",
            "room left",
        ),
        (
            "model qwen",
            {"models": [a_model("qwen", a_condition("Ready", "False", "InsufficientGPU", "none is free"))]},
            "warn",
            "InsufficientGPU: none is free",
        ),
    ],
)
def test_a_check_finds(check: str, facts: dict[str, Any], level: str, said: str) -> None:
    found = outcome(check, **facts)

    assert (found.level, said in found.message) == (level, True), found
    assert found.remedy or level in ("ok", "skip")


@pytest.mark.parametrize(
    "gpu",
    [{"count": 8}, {"count": 0, "resourceName": "amd.com/gpu"}, {"count": 16, "claims": CLAIMS}, {"count": "many"}],
    ids=["fits", "on the CPU", "claimed", "no spec at all"],
)
def test_nothing_is_said_of_the_size_of_what_fits_or_counts_no_gpus(gpu: dict[str, Any]) -> None:
    found = judge(replace(HEALTHY, models=[a_gpu_model(**gpu)]), NOW)

    assert [each for each in found if each.check == "GPUs of qwen"] == []


@pytest.mark.parametrize(
    ("nodes", "count"), [(None, 16), ([a_node(cordoned=True)], 0)], ids=["unlisted", "no GPU asked"]
)
def test_nothing_is_said_of_sizes_where_there_is_nothing_to_compare(nodes: list[Any] | None, count: int) -> None:
    found = judge(replace(HEALTHY, nodes=nodes, models=[a_gpu_model(count=count)]), NOW)

    assert [each for each in found if each.check == "GPUs of qwen"] == []


@pytest.mark.parametrize(
    ("api", "templates", "is_served", "read"),
    [
        (404, 404, False, []),
        ({}, 403, True, None),
        ({}, [{"metadata": {"name": "a"}}], True, [{"metadata": {"name": "a"}}]),
    ],
)
def test_templates_of_claims_are_read_where_they_are_served(
    api: Any, templates: Any, is_served: bool, read: Any
) -> None:
    dra = "/apis/resource.k8s.io/v1"
    cluster = FakeCluster({"/version": {}, dra: api, f"{dra}/namespaces/team/resourceclaimtemplates": templates})
    cluster.answer = lambda method, path, body: {"status": {"allowed": True}}

    facts = doctor.gather(cluster)

    assert (facts.serves_claims, facts.claim_templates) == (is_served, read)


def test_what_may_not_be_read_is_skipped_and_fails_nothing() -> None:
    """A person with few rights gets what they may see, not a refusal."""
    cluster = FakeCluster(
        {
            "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.4"},
            "/apis/octavo.dev/v1alpha1": {},
            "/apis/octavo.dev/v1alpha1/namespaces/team/modeldeployments": 403,
            "/apis/apps/v1/deployments": 403,
            "/apis/apps/v1/namespaces/octavo-system/deployments": [a_release("operator")],
            "/apis/coordination.k8s.io/v1/namespaces/octavo-system/leases": 403,
            "/api/v1/nodes": 403,
            "/api/v1/namespaces/team/resourcequotas": 403,
        }
    )
    cluster.answer = lambda method, path, body: {"status": {"allowed": True}}

    levels = {each.check: each.level for each in judge(doctor.gather(cluster), NOW)}

    assert levels["leader"] == levels["GPUs"] == levels["quotas of team"] == levels["models of team"] == "skip"
    assert levels["rights of you"] == levels["rights of the operator"] == "ok"


def test_rights_are_asked_for_the_account_that_the_program_runs_as_and_where_it_watches() -> None:
    limited = a_release("gateway")
    limited["spec"]["template"]["spec"]["containers"][0]["args"] = ["--namespaces=a,b"]
    cluster = FakeCluster({"/version": {}, "/apis/apps/v1/deployments": [limited]})
    cluster.answer = lambda method, path, body: {"status": {"allowed": True}}

    doctor.gather(cluster)

    asked = [body["spec"] for _, path, body in cluster.sent if path.endswith("/subjectaccessreviews")]
    patches = [each for each in asked if each["resourceAttributes"].get("subresource") == "scale"]
    assert {each["user"] for each in patches} == {"system:serviceaccount:octavo-system:octavo-gateway"}
    assert [each["resourceAttributes"]["namespace"] for each in patches] == ["a", "b"]


@pytest.mark.parametrize(
    ("plural", "flags", "verbs"),
    [
        ("networkpolicies", [], {"list", "watch", "delete"}),
        ("networkpolicies", ["--server-network-policy={}"], {"list", "watch", "create", "patch", "delete"}),
        ("scaledobjects", [], set()),
        ("scaledobjects", ["--prometheus-address=http://p:9090"], {"list", "create", "patch", "delete"}),
    ],
)
def test_rights_to_optional_kinds_are_asked_for_where_the_operator_is_told_to_make_them(
    plural: str, flags: list[str], verbs: set[str]
) -> None:
    operator = a_release("operator", args=flags)
    cluster = FakeCluster({"/version": {}, "/apis/apps/v1/deployments": [operator]})
    cluster.answer = lambda method, path, body: {"status": {"allowed": True}}

    doctor.gather(cluster)

    asked = [body["spec"]["resourceAttributes"] for _, _, body in cluster.sent]
    assert {each["verb"] for each in asked if each["resource"] == plural} == verbs


@pytest.mark.parametrize(("allowed", "status"), [(True, 0), (False, 1)])
def test_the_exit_status_is_1_where_a_check_fails(allowed: bool, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gather", lambda cluster: replace(HEALTHY, rights={LIST_PODS: allowed}))
    parser = plugin.parser(only="doctor")
    doctor.add_arguments(parser.subcommands["doctor"])

    # The Lease of these facts is old by now: only its check is left out of the account.
    monkeypatch.setattr(doctor, "judge", lambda facts, now: judge(facts, NOW))

    assert doctor.run(FakeCluster({}), parser.parse_args(["doctor"]), Console(quiet=True)) == status
