from __future__ import annotations

from octavo_operator.metrics_adapter.store import MetricsStore, mean_pressure
from octavo_testing.adapter import NOW, a_load, a_pod


def test_a_load_grows_stale():
    store = MetricsStore(fresh_for_s=10)
    store.put("uid", a_load(at=NOW))

    assert store.fresh("uid", NOW + 10) is not None
    assert store.fresh("uid", NOW + 10.1) is None
    assert store.fresh("unknown", NOW) is None


def test_the_longest_unheard_pod_goes_first_when_the_store_is_full():
    store = MetricsStore(max_pods=2)

    for uid in ("a", "b", "a", "c"):
        store.put(uid, a_load())

    assert [uid for uid in "abc" if store.fresh(uid, NOW)] == ["a", "c"]
    assert len(store) == 2


def test_retain_keeps_only_what_it_is_told():
    store = MetricsStore()
    store.put("a", a_load())
    store.put("b", a_load())

    store.retain(["b", "c"])

    assert [uid for uid in "ab" if store.fresh(uid, NOW)] == ["b"]


def test_the_mean_is_over_serving_pods_with_a_fresh_load():
    store = MetricsStore()
    pods = [a_pod("a"), a_pod("b"), a_pod("unready", ready=False), a_pod("leaving", terminating=True), a_pod("silent")]
    for pod, pressure in zip(pods[:4], (1.0, 2.0, 9.0, 9.0), strict=True):
        store.put(pod.uid, a_load(pressure))

    assert mean_pressure(pods, store, NOW) == 1.5
    assert mean_pressure(pods[2:], store, NOW) is None
