"""The cache: newest version wins, everything is found by its owner, a list tells what vanished."""

from __future__ import annotations

from typing import Any

from octavo_operator.object_cache import MAX_REMEMBERED_REMOVALS, ObjectCache
from octavo_testing.control_plane import a_download_pod, a_manifest, a_pod

QWEN, LLAMA = ("default", "qwen"), ("default", "llama")


def an_object(
    name: str, *, owner: str = "qwen", version: str = "5", uid: str = "", kind: str = "Pod"
) -> dict[str, Any]:
    labels = {"octavo.dev/modeldeployment": owner}
    metadata = {
        "name": name,
        "namespace": "default",
        "uid": uid or f"uid-{name}",
        "resourceVersion": version,
        "labels": labels,
    }
    return {"kind": kind, "metadata": metadata}


def test_object_touches_its_owner() -> None:
    cache = ObjectCache()

    assert cache.put(an_object("a")) == {QWEN}
    assert [obj["metadata"]["name"] for obj in cache.owned(QWEN)] == ["a"]
    assert len(cache.pods()) == 1


def test_older_or_equal_version_changes_nothing() -> None:
    cache = ObjectCache()
    cache.put(an_object("a", version="9"))

    assert cache.put(an_object("a", version="9")) == frozenset()
    assert cache.put(an_object("a", version="10")) == {QWEN}
    assert cache.put(an_object("a", version="9")) == frozenset()


def test_object_that_changes_hands_touches_both_owners() -> None:
    cache = ObjectCache()
    cache.put(an_object("a", owner="qwen", version="1"))

    assert cache.put(an_object("a", owner="llama", version="2")) == {QWEN, LLAMA}
    assert cache.owned(QWEN) == []


def test_removal_of_an_object_that_was_replaced_is_ignored() -> None:
    cache = ObjectCache()
    cache.put(an_object("a", uid="new"))

    assert cache.remove(an_object("a", uid="old")) == frozenset()
    assert cache.remove(an_object("a", uid="new")) == {QWEN}
    assert cache.remove(an_object("a", uid="new")) == frozenset()
    assert cache.owned(QWEN) == []


def test_list_tells_what_vanished_while_nobody_watched() -> None:
    cache = ObjectCache()
    for name in ("a", "b"):
        cache.put(an_object(name))
    cache.put(an_object("svc", kind="Service", owner="llama"))

    touched = cache.replace_kind("Pod", "", [an_object("b"), an_object("c", owner="llama")], version=9)

    assert touched == {QWEN, LLAMA}
    assert [obj["metadata"]["name"] for obj in cache.owned(QWEN)] == ["b"]
    assert {obj["metadata"]["name"] for obj in cache.owned(LLAMA)} == {"svc", "c"}


def test_list_of_another_namespace_leaves_ours_alone() -> None:
    cache = ObjectCache()
    cache.put(an_object("a"))

    assert cache.replace_kind("Pod", "other", [], version=9) == frozenset()
    assert len(cache.owned(QWEN)) == 1


def test_claimants_of_a_name_hear_of_each_other() -> None:
    cache = ObjectCache()
    cache.put(a_manifest("qwen", servedNames=["chat"]))

    touched = cache.put(a_manifest("llama", servedNames=["chat"]))

    assert touched == {QWEN, LLAMA}
    assert [obj["metadata"]["name"] for obj in cache.claimants(["chat", "chat"])] == ["llama", "qwen"]
    assert cache.remove(a_manifest("llama", servedNames=["chat"])) == {QWEN, LLAMA}
    assert [obj["metadata"]["name"] for obj in cache.resources()] == ["qwen"]
    assert cache.resource(LLAMA) is None


def test_managed_fields_are_not_kept() -> None:
    cache = ObjectCache()
    obj = a_manifest("qwen")
    obj["metadata"]["managedFields"] = [{"manager": "x"}]
    cache.put(obj)

    kept = cache.resource(QWEN)

    assert kept is not None
    assert "managedFields" not in kept["metadata"]


def test_list_says_nothing_about_what_came_after_it() -> None:
    """A watch told of an object while the list was on its way: it must not be taken for gone."""
    cache = ObjectCache()
    cache.put(an_object("new", version="11"))

    assert cache.replace_kind("Pod", "", [], version=10) == frozenset()
    assert len(cache.pods()) == 1
    assert cache.replace_kind("Pod", "", [], version=11) == {QWEN}


def test_deleted_object_does_not_come_back_by_a_late_answer() -> None:
    cache = ObjectCache()
    cache.put(an_object("a", version="5"))
    cache.remove(an_object("a", version="8"))

    assert cache.put(an_object("a", version="7")) == frozenset()
    assert cache.replace_kind("Pod", "", [an_object("a", version="7")], version=7) == frozenset()
    assert cache.owned(QWEN) == []


def test_object_that_left_only_the_watch_may_come_back() -> None:
    """Taking a label away looks like a deletion; giving it back makes the same object newer."""
    cache = ObjectCache()
    cache.put(an_object("a", version="5"))
    cache.remove(an_object("a", version="8"))

    assert cache.put(an_object("a", version="9")) == {QWEN}


def test_memory_of_deletions_is_bounded() -> None:
    cache = ObjectCache()
    for number in range(MAX_REMEMBERED_REMOVALS + 1):
        cache.put(an_object("a", uid=str(number)))
        cache.remove(an_object("a", uid=str(number)))

    assert cache.put(an_object("a", uid="0")) == {QWEN}
    assert cache.put(an_object("b", uid="1")) == frozenset()


def test_a_pod_that_only_fetches_belongs_to_its_resource_and_is_no_server() -> None:
    cache = ObjectCache()
    server, fetching = a_pod(), a_download_pod()

    cache.put(dict(server.raw))
    assert cache.put(dict(fetching.raw)) == {("default", "qwen")}

    assert {obj["metadata"]["name"] for obj in cache.owned(("default", "qwen"))} == {server.name, fetching.name}
    assert [obj["metadata"]["name"] for obj in cache.pods()] == [server.name]
