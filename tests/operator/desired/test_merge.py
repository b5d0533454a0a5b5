"""Strategic merge as kubectl does it for pod templates."""

from __future__ import annotations

from octavo_operator.desired.merge import strategic_merge

BASE = {
    "containers": [{"name": "server", "image": "a", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}],
    "tolerations": [{"key": "x"}],
    "nodeSelector": {"a": "1"},
}


def test_items_merge_by_their_key_and_new_ones_are_added() -> None:
    patch = {"containers": [{"name": "server", "env": [{"name": "B", "value": "3"}, {"name": "C"}]}, {"name": "side"}]}

    merged = strategic_merge(BASE, patch)

    expected_env = [{"name": "A", "value": "1"}, {"name": "B", "value": "3"}, {"name": "C"}]
    assert merged["containers"] == [{"name": "server", "image": "a", "env": expected_env}, {"name": "side"}]
    assert BASE["containers"][0]["env"][1]["value"] == "2"


def test_lists_without_a_key_are_replaced() -> None:
    assert strategic_merge(BASE, {"tolerations": [{"key": "y"}]})["tolerations"] == [{"key": "y"}]


def test_objects_merge_and_null_removes() -> None:
    assert strategic_merge(BASE, {"nodeSelector": {"a": None, "b": "2"}})["nodeSelector"] == {"b": "2"}
    assert "tolerations" not in strategic_merge(BASE, {"tolerations": None})


def test_object_may_replace_what_was_none() -> None:
    assert strategic_merge({"a": "text"}, {"a": {"b": 1}}) == {"a": {"b": 1}}


def test_patch_directives_delete_an_item_and_replace_objects_and_lists() -> None:
    deleted = strategic_merge(BASE, {"containers": [{"name": "server", "$patch": "delete"}]})
    absent = strategic_merge(BASE, {"containers": [{"name": "other", "$patch": "delete"}]})
    replaced = strategic_merge(BASE, {"nodeSelector": {"$patch": "replace", "z": "9"}})
    whole_list = strategic_merge(BASE, {"containers": [{"$patch": "replace"}, {"name": "only"}]})

    assert deleted["containers"] == []
    assert absent["containers"] == BASE["containers"]
    assert replaced["nodeSelector"] == {"z": "9"}
    assert whole_list["containers"] == [{"name": "only"}]


def test_list_of_something_else_than_objects_is_passed_on_for_the_api_server_to_refuse() -> None:
    assert strategic_merge(BASE, {"containers": ["server"]})["containers"] == ["server"]
    assert strategic_merge({}, {"env": [None, {"name": "A"}]})["env"] == [None, {"name": "A"}]
