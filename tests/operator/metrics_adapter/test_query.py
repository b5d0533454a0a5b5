"""From paths to measurements."""

from __future__ import annotations

import pytest

from octavo_operator.metrics_adapter.errors import BadRequestError, NotFoundError
from octavo_operator.metrics_adapter.kube_access import PathAccess, ResourceAccess
from octavo_operator.metrics_adapter.query import discovery_document, measure, parse_access, parse_query
from octavo_operator.metrics_adapter.store import MetricsStore
from octavo_testing.adapter import NOW, a_load, a_pod

BASE = "/apis/custom.metrics.k8s.io/v1beta2"
METRIC = "octavo_kv_pressure_ratio"


def access(**changes) -> ResourceAccess:
    fields = {
        "verb": "get",
        "group": "custom.metrics.k8s.io",
        "version": "v1beta2",
        "namespace": "default",
        "resource": "pods",
        "subresource": METRIC,
        "name": "*",
    }
    return ResourceAccess(**{**fields, **changes})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"{BASE}/namespaces/default/pods/*/{METRIC}", access()),
        (f"{BASE}/namespaces/default/pods/%2A/{METRIC}?labelSelector=a%3Db", access()),
        (f"{BASE}/namespaces/default/pods/qwen-1/{METRIC}", access(name="qwen-1")),
        (
            f"{BASE}/namespaces/default/modeldeployments.octavo.dev/qwen/{METRIC}",
            access(resource="modeldeployments.octavo.dev", name="qwen"),
        ),
        (f"{BASE}/namespaces/default/pods", access(verb="list", name="", subresource="")),
        (f"{BASE}/namespaces/default/metrics/x", access(resource="metrics", name="x", subresource="")),
        (f"{BASE}/nodes/n/{METRIC}", access(namespace="", resource="nodes", name="n")),
        (f"{BASE}/namespaces/default", access(namespace="", resource="namespaces", name="default", subresource="")),
        (f"{BASE}/namespaces/default/pods/a%2Fb/{METRIC}", access(name="a/b")),
        ("/apis", PathAccess(verb="get", path="/apis")),
        ("/", PathAccess(verb="get", path="/")),
        ("/apis/custom.metrics.k8s.io/", PathAccess(verb="get", path="/apis/custom.metrics.k8s.io")),
        (BASE, PathAccess(verb="get", path=BASE)),
        ("/openapi/v2?x=y", PathAccess(verb="get", path="/openapi/v2")),
        ("/apis/other.k8s.io/v1/a/b/c", PathAccess(verb="get", path="/apis/other.k8s.io/v1/a/b/c")),
    ],
)
def test_a_path_is_cut_as_kubernetes_cuts_it(path, expected):
    assert parse_access(path) == expected


@pytest.mark.parametrize("path", ["/apis", "/apis/custom.metrics.k8s.io", BASE, BASE.replace("beta2", "beta1")])
def test_discovery_is_found(path):
    assert discovery_document(path)["apiVersion"] == "v1"


@pytest.mark.parametrize("path", ["/", "/openapi/v2", "/openapi/v3", "/healthz", BASE.replace("beta2", "beta3")])
def test_other_paths_are_not_found(path):
    with pytest.raises(NotFoundError):
        discovery_document(path)


def names(
    query_access: ResourceAccess, pods, store, *, selector: str = "", metric_selector: str = ""
) -> dict[str, float]:
    query = parse_query(query_access, selector, metric_selector)
    return {found.name: found.value for found in measure(query, pods, store, NOW)}


def a_store(*loads) -> MetricsStore:
    store = MetricsStore()
    for pod, pressure in loads:
        store.put(pod.uid, a_load(pressure))
    return store


PODS = [
    a_pod("b", labels={"revision": "two"}),
    a_pod("a", labels={"revision": "one"}),
    a_pod("c", model="llama"),
    a_pod("d", namespace="other"),
]
LEFT_OUT = [a_pod("unready", ready=False), a_pod("leaving", terminating=True)]
STORE = a_store(*zip(PODS + LEFT_OUT, (1.0, 2.0, 3.0, 4.0, 99.0, 99.0), strict=True))


def test_all_serving_pods_of_the_namespace_sorted():
    found = names(access(), PODS + LEFT_OUT, STORE)

    assert list(found.items()) == [("a", 2.0), ("b", 1.0), ("c", 3.0)]


def test_a_selector_takes_the_pods_that_it_selects():
    assert names(access(), PODS, STORE, selector="octavo.dev/modeldeployment=qwen") == {"a": 2.0, "b": 1.0}
    assert names(access(), PODS, STORE, selector="revision in (one)") == {"a": 2.0}


def test_nothing_selected_is_an_empty_list_not_an_error():
    assert names(access(), PODS, STORE, selector="app=none") == {}
    assert names(access(namespace="nowhere"), PODS, STORE) == {}


def test_a_selector_over_the_metrics_own_labels_finds_none_since_they_have_none():
    assert names(access(), PODS, STORE, metric_selector="queue=a") == {}
    assert len(names(access(), PODS, STORE, metric_selector="queue!=a")) == 3


def test_one_pod_by_name():
    assert names(access(name="a"), PODS, STORE) == {"a": 2.0}


@pytest.mark.parametrize("name", ["nobody", "d", "unready", "leaving"])
def test_a_pod_without_a_value_is_not_found(name):
    with pytest.raises(NotFoundError, match=f"could not find the metric {METRIC} for pods {name}"):
        names(access(name=name), PODS + LEFT_OUT, STORE)


@pytest.mark.parametrize("load", [a_load(float("nan")), a_load(float("inf")), a_load(-1.0), a_load(1.0, at=NOW - 11)])
def test_nonsense_and_stale_values_are_left_out(load):
    store = a_store((PODS[1], 2.0))
    store.put(PODS[0].uid, load)

    assert names(access(), PODS, store) == {"a": 2.0}


MODELS = access(resource="modeldeployments.octavo.dev", name="qwen")


def test_a_model_is_the_mean_over_its_serving_pods():
    assert names(MODELS, PODS + LEFT_OUT, STORE) == {"qwen": 1.5}


def test_the_mean_is_as_old_as_its_oldest_part():
    store = a_store((PODS[0], 1.0))
    store.put(PODS[1].uid, a_load(2.0, at=NOW - 5))

    (found,) = measure(parse_query(MODELS, "", ""), PODS, store, NOW)

    assert found.at == NOW - 5


def test_all_models_of_a_namespace():
    everything = access(resource="modeldeployments.octavo.dev")

    assert names(everything, [*PODS, a_pod("free", model="")], STORE) == {"llama": 3.0, "qwen": 1.5}


def test_a_model_without_a_value_is_not_found():
    with pytest.raises(NotFoundError) as refused:
        names(MODELS, PODS, MetricsStore())

    assert refused.value.status() == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"the server could not find the metric {METRIC} for modeldeployments.octavo.dev qwen",
        "reason": "NotFound",
        "details": {"name": "qwen", "group": "custom.metrics.k8s.io", "kind": "modeldeployments.octavo.dev"},
        "code": 404,
    }


def test_models_cannot_be_selected_by_labels_that_nobody_here_knows():
    with pytest.raises(BadRequestError, match="labelSelector is not served"):
        parse_query(MODELS, "a=b", "")


@pytest.mark.parametrize(
    "change",
    [
        {"version": "v1beta3"},
        {"namespace": ""},
        {"resource": "services"},
        {"subresource": "other_metric"},
        {"subresource": ""},
        {"resource": "modeldeployments"},
    ],
)
def test_what_is_not_served_is_not_found(change):
    with pytest.raises(NotFoundError):
        parse_query(access(**change), "", "")
