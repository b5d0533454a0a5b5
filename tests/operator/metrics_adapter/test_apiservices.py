from __future__ import annotations

import base64
import copy

import pytest

from octavo_operator.metrics_adapter.apiservices import (
    AdapterService,
    api_service_names,
    build_api_services,
    differs,
    ownership,
)

SERVICE = AdapterService(name="octavo-metrics-adapter", namespace="sys", cluster_role="sys-octavo-operator")


def build(ca: bytes = b"CA", uid: str = "uid-1"):
    return build_api_services(SERVICE, ca_bundle_pem=ca, owner_uid=uid)


def test_both_versions_literally():
    first, second = build()

    assert first == {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {
            "name": "v1beta2.custom.metrics.k8s.io",
            "labels": {"app.kubernetes.io/managed-by": "octavo", "app.kubernetes.io/component": "metrics-adapter"},
            "ownerReferences": [
                {
                    "apiVersion": "rbac.authorization.k8s.io/v1",
                    "kind": "ClusterRole",
                    "name": "sys-octavo-operator",
                    "uid": "uid-1",
                }
            ],
        },
        "spec": {
            "group": "custom.metrics.k8s.io",
            "version": "v1beta2",
            "groupPriorityMinimum": 100,
            "versionPriority": 200,
            "caBundle": base64.b64encode(b"CA").decode(),
            "service": {"name": "octavo-metrics-adapter", "namespace": "sys", "port": 443},
        },
    }
    assert [first["metadata"]["name"], second["metadata"]["name"]] == api_service_names()
    assert second["spec"]["versionPriority"] < first["spec"]["versionPriority"]


def test_ownership_is_told_by_the_service():
    ours = build()[0]
    foreign = copy.deepcopy(ours)
    foreign["spec"]["service"]["name"] = "prometheus-adapter"

    assert ownership(None, SERVICE) == "absent"
    assert ownership(ours, SERVICE) == "ours"
    assert ownership(foreign, SERVICE) == "foreign"
    assert ownership({"spec": {"service": None}}, SERVICE) == "foreign"


def test_what_the_api_server_adds_is_no_difference():
    wanted = build()[0]
    live = copy.deepcopy(wanted)
    live["metadata"] |= {"resourceVersion": "7", "uid": "x"}
    live["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"] = "onstart"
    live["status"] = {"conditions": []}

    assert not differs(live, wanted)


@pytest.mark.parametrize(
    "change",
    [
        lambda live: live["spec"].update(caBundle="b2xk"),
        lambda live: live["spec"]["service"].update(port=6443),
        lambda live: live["spec"].update(groupPriorityMinimum=1),
        lambda live: live["metadata"]["labels"].clear(),
        lambda live: live["metadata"].pop("ownerReferences"),
        lambda live: live["metadata"]["ownerReferences"][0].update(uid="of an older release"),
    ],
)
def test_what_was_changed_is_applied_again(change):
    wanted = build()[0]
    live = copy.deepcopy(wanted)

    change(live)

    assert differs(live, wanted)


def test_an_absent_one_is_applied():
    assert differs(None, build()[0])
