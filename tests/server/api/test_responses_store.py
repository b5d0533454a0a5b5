"""Stored responses are bounded by count, bytes and age."""

from __future__ import annotations

from typing import Any

from octavo_server.api.responses_store import ResponseStore, StoredResponse


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def a_store(clock: Clock | None = None, **bounds: Any) -> ResponseStore:
    limits = {"max_responses": 3, "max_bytes": 10**6, "max_age_s": 100.0, **bounds}
    return ResponseStore(**limits, clock=clock or Clock())


def a_response(name: str, text: str = "") -> StoredResponse:
    return StoredResponse(response={"id": name, "output": [{"id": f"msg_{name}", "text": text}]}, input_items=[])


def names(store: ResponseStore, *asked: str) -> list[str]:
    return [name for name in asked if store.get(name) is not None]


def test_the_oldest_goes_first() -> None:
    store = a_store()
    for name in "abcd":
        store.put(a_response(name))

    assert names(store, *"abcd") == ["b", "c", "d"]


def test_bytes_are_bounded_and_come_back() -> None:
    store = a_store(max_bytes=400)
    for name in "abc":
        store.put(a_response(name, "x" * 100))

    assert store.num_bytes <= 400
    assert names(store, *"abc") == ["b", "c"]
    assert store.remove("b")
    assert store.remove("c")
    assert (store.num_bytes, len(store)) == (0, 0)


def test_one_that_is_larger_than_all_room_is_not_kept() -> None:
    store = a_store(max_bytes=50)
    store.put(a_response("a", "x" * 100))

    assert names(store, "a") == []
    assert store.num_bytes == 0


def test_age_is_bounded() -> None:
    clock = Clock()
    store = a_store(clock)
    store.put(a_response("a"))
    clock.now = 99
    store.put(a_response("b"))

    clock.now = 101

    assert names(store, "a", "b") == ["b"]


def test_putting_again_counts_once_and_is_new() -> None:
    store = a_store()
    for name in "abca":
        store.put(a_response(name))
    size = store.num_bytes
    store.put(a_response("a"))
    store.put(a_response("d"))

    assert size == 3 * (store.num_bytes // 3)
    assert names(store, *"abcd") == ["a", "c", "d"]


def test_items_are_found_by_their_own_names() -> None:
    store = a_store()
    store.put(a_response("a", "said"))

    assert store.find_item("msg_a") == {"id": "msg_a", "text": "said"}
    assert store.find_item("msg_b") is None
