"""Rights: exactly what the programs ask for, no star, and no Secret but the adapter's own."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_gateway import kube_objects
from octavo_gateway.kube_quota import SHARDS
from octavo_operator.kube import kinds

Rule = tuple[str, str, frozenset[str]]
"""(group, resource, verbs)."""
APPLIED = frozenset({"list", "watch", "create", "patch", "delete"})
READ = frozenset({"list", "watch"})


def rules(role: dict[str, Any]) -> set[Rule]:
    return {
        (group, resource, frozenset(rule["verbs"]))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


VALUE_SETS = [{}, {"namespaces": ["team-a"]}, {"metricsAdapter": {"enabled": False}}, {"gateway": {"replicas": 1}}]


@pytest.fixture(params=VALUE_SETS, ids=str)
def rendered(request, render):
    return render(request.param)


def test_no_rule_has_a_star(rendered):
    for role in rendered.of("ClusterRole") + rendered.of("Role"):
        for rule in role["rules"]:
            assert "nonResourceURLs" not in rule
            for key in ("apiGroups", "resources", "verbs"):
                assert rule[key]
                assert not any("*" in entry for entry in rule[key])


def test_secrets_are_readable_by_one_name_or_where_keys_lie(rendered):
    for role in rendered.of("ClusterRole"):
        assert all("secrets" not in rule["resources"] for rule in role["rules"])
    own = {
        ("octavo-operator", "octavo-metrics-adapter", ("get", "update")),
        ("octavo-gateway", "octavo-gateway-peers", ("get", "patch")),
    }
    for role in (role for role in rendered.of("Role") if role["metadata"]["name"] != "sys-octavo-keys"):
        for rule in (rule for rule in role["rules"] if "secrets" in rule["resources"]):
            assert role["metadata"]["namespace"] == "sys"
            assert (role["metadata"]["name"], *rule["resourceNames"], tuple(rule["verbs"])) in own


@pytest.mark.parametrize(("given", "namespaces"), [([], ["sys"]), (["team-a", "team-b"], ["team-a", "team-b"])])
def test_keys_may_be_got_in_the_named_namespaces_by_gateway_and_operator(render, given, namespaces):
    rendered = render({"secretNamespaces": given})
    roles = [role for role in rendered.of("Role") if role["metadata"]["name"] == "sys-octavo-keys"]
    bindings = [each for each in rendered.of("RoleBinding") if each["metadata"]["name"] == "sys-octavo-keys"]

    assert [role["metadata"]["namespace"] for role in roles] == namespaces
    assert all(rules(role) == {("", "secrets", frozenset({"get"}))} for role in roles)
    assert [each["metadata"]["namespace"] for each in bindings] == namespaces
    for binding in bindings:
        assert binding["roleRef"]["name"] == "sys-octavo-keys"
        assert {(each["name"], each["namespace"]) for each in binding["subjects"]} == {
            ("octavo-gateway", "sys"),
            ("octavo-operator", "sys"),
        }


@pytest.mark.parametrize("has_policies", [False, True])
def test_the_operator_may_exactly_what_its_kinds_need(render, has_policies):
    expected = {(kind.group, kind.plural, APPLIED) for kind in kinds.OWNED if kind != kinds.NETWORK_POLICY}
    # Without the option it only removes those that were made while it was set.
    verbs = APPLIED if has_policies else READ | {"delete"}
    expected |= {(kinds.NETWORK_POLICY.group, kinds.NETWORK_POLICY.plural, verbs)}
    expected |= {(kinds.MODEL_DEPLOYMENT.group, kinds.MODEL_DEPLOYMENT.plural, READ)}
    # It marks the pods of a Deployment that is about to give up some.
    expected |= {(kinds.POD.group, kinds.POD.plural, READ | {"patch"})}
    expected |= {
        (kinds.MODEL_DEPLOYMENT.group, "modeldeployments/status", frozenset({"patch"})),
        (kinds.MODEL_DEPLOYMENT.group, "modeldeployments/scale", frozenset({"patch"})),
        (kinds.MODEL_DEPLOYMENT.group, "modeldeployments/finalizers", frozenset({"update"})),
        (kinds.EVENT.group, kinds.EVENT.plural, frozenset({"create", "list"})),
    }

    rendered = render({"networkPolicies": {"enabled": has_policies}})
    assert rules(rendered.find("ClusterRole", "sys-octavo-operator")) == expected


def test_the_operator_may_scale_by_keda_where_that_is_asked_for(render):
    role = render({"keda": {"enabled": True}, "prometheus": {"address": "http://p:9090"}})

    more = rules(role.find("ClusterRole", "sys-octavo-operator"))
    assert more - rules(render().find("ClusterRole", "sys-octavo-operator")) == {
        (kinds.SCALED_OBJECT.group, kinds.SCALED_OBJECT.plural, APPLIED - {"watch"})
    }


def test_the_operator_may_outside_of_namespaces_only_this(render):
    assert rules(render().find("ClusterRole", "sys-octavo-operator-cluster")) == {
        ("", "nodes", frozenset({"list"})),
        ("apiregistration.k8s.io", "apiservices", frozenset({"create"})),
        ("apiregistration.k8s.io", "apiservices", frozenset({"get", "patch"})),
        ("rbac.authorization.k8s.io", "clusterroles", frozenset({"get"})),
    }


def test_the_operator_may_in_its_own_namespace_only_this(render):
    assert rules(render().find("Role", "octavo-operator")) == {
        (kinds.LEASE.group, kinds.LEASE.plural, frozenset({"create"})),
        (kinds.LEASE.group, kinds.LEASE.plural, frozenset({"get", "update"})),
        ("", "pods", frozenset({"list"})),
        ("", "secrets", frozenset({"get", "update"})),
    }


def test_what_can_be_limited_to_a_name_is(render):
    rendered = render()
    named = {
        (resource, tuple(rule["resourceNames"]))
        for role in rendered.of("ClusterRole") + rendered.of("Role")
        for rule in role["rules"]
        if "resourceNames" in rule
        for resource in rule["resources"]
    }

    assert named == {
        ("apiservices", ("v1beta1.custom.metrics.k8s.io", "v1beta2.custom.metrics.k8s.io")),
        ("clusterroles", ("sys-octavo-metrics-reader",)),
        ("leases", ("octavo-operator",)),
        ("secrets", ("octavo-metrics-adapter",)),
        ("secrets", ("octavo-gateway-peers",)),
        ("configmaps", tuple(f"octavo-gateway-quota-{shard}" for shard in range(SHARDS))),
    }


def test_the_gateway_may_read_and_wake(render):
    assert "app.kubernetes.io/managed-by" in kube_objects.POD_SELECTOR
    assert rules(render().find("ClusterRole", "sys-octavo-gateway")) == {
        ("octavo.dev", "modeldeployments", READ),
        ("octavo.dev", "modeldeployments/scale", frozenset({"patch"})),
        ("", "pods", READ),
    }


def test_the_gateway_may_in_its_own_namespace_only_what_quotas_need_and_those_objects_are_made_empty(render):
    rendered = render()

    assert rules(rendered.find("Role", "octavo-gateway")) == {
        ("discovery.k8s.io", "endpointslices", READ),
        ("", "secrets", frozenset({"get", "patch"})),
        ("", "configmaps", frozenset({"get", "patch"})),
    }
    made = [rendered.find("Secret", "octavo-gateway-peers")]
    made += [rendered.find("ConfigMap", f"octavo-gateway-quota-{shard}") for shard in range(SHARDS)]
    assert not any("data" in each or "stringData" in each for each in made)
    assert rendered.find("Service", "octavo-gateway-internal")


def test_the_hpa_controller_may_read_what_the_adapter_serves(render):
    from octavo_operator.metrics_adapter.documents import GROUP, KINDS, METRICS

    rendered = render()

    assert rules(rendered.find("ClusterRole", "sys-octavo-metrics-reader")) == {
        (GROUP, f"{resource}/{metric}", frozenset({"get"})) for resource in KINDS for metric in METRICS
    }
    assert rendered.find("ClusterRoleBinding", "sys-octavo-metrics-reader")["subjects"] == [
        {"kind": "ServiceAccount", "name": "horizontal-pod-autoscaler", "namespace": "kube-system"}
    ]


def test_the_adapter_may_review_tokens_and_accesses_and_read_the_front_proxys_ca(render):
    rendered = render()
    operator = [{"kind": "ServiceAccount", "name": "octavo-operator", "namespace": "sys"}]

    delegator = rendered.find("ClusterRoleBinding", "sys-octavo-auth-delegator")
    reader = rendered.find("RoleBinding", "sys-octavo-authentication-reader")

    assert (delegator["roleRef"]["name"], delegator["subjects"]) == ("system:auth-delegator", operator)
    assert (reader["roleRef"]["name"], reader["subjects"]) == ("extension-apiserver-authentication-reader", operator)
    assert reader["metadata"]["namespace"] == "kube-system"


@pytest.mark.parametrize("component", ["operator", "gateway"])
def test_with_namespaces_rights_are_given_only_there(render, component):
    role = f"sys-octavo-{component}"
    everywhere, limited = render(), render({"namespaces": ["team-a", "team-b"]})

    def bound(rendered, kind: str) -> list[str | None]:
        return [each["metadata"].get("namespace") for each in rendered.of(kind) if each["roleRef"]["name"] == role]

    assert bound(everywhere, "ClusterRoleBinding") == [None]
    assert bound(everywhere, "RoleBinding") == []
    assert bound(limited, "ClusterRoleBinding") == []
    assert bound(limited, "RoleBinding") == ["team-a", "team-b"]


def test_every_binding_names_a_role_of_the_chart_or_a_known_one(rendered):
    ours = {(role["kind"], role["metadata"]["name"]) for role in rendered.of("ClusterRole") + rendered.of("Role")}
    known = {("ClusterRole", "system:auth-delegator"), ("Role", "extension-apiserver-authentication-reader")}
    accounts = {account["metadata"]["name"] for account in rendered.of("ServiceAccount")}

    for binding in rendered.of("ClusterRoleBinding") + rendered.of("RoleBinding"):
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in ours | known
        for subject in binding["subjects"]:
            assert subject["name"] in accounts | {"horizontal-pod-autoscaler"}


def test_who_may_edit_a_namespace_may_edit_its_models(render):
    rendered = render()

    edit, view = (rendered.find("ClusterRole", f"sys-octavo-{name}") for name in ("edit", "view"))

    assert edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    assert edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"] == "true"
    assert view["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert ("octavo.dev", "modeldeployments", frozenset({"get", "list", "watch"})) in rules(view)
