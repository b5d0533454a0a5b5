"""When an object in the cluster counts as ours and unchanged."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.drift import matches

SAME: dict[str, tuple[Any, Any]] = {
    "defaults that the server added": ({"a": 1}, {"a": 1, "b": 2}),
    "shorter form of a quantity": ({"cpu": "1000m"}, {"cpu": "1"}),
    "number as a quantity": ({"cpu": 0.5}, {"cpu": "500m"}),
    "empty is as good as absent": ({"a": {}, "b": [], "c": "", "d": None, "e": False, "f": 0}, {}),
    "items of others in a list with names": ([{"name": "a"}], [{"name": "x"}, {"name": "a", "more": 1}]),
    "equal list": ([1, 2], [1, 2]),
    "a name twice": ([{"name": "a", "v": 1}, {"name": "a", "v": 2}], [{"name": "a", "v": 1}, {"name": "a", "v": 2}]),
    "selector": (
        {"selector": {"matchLabels": {"a": "b"}, "matchExpressions": []}},
        {"selector": {"matchLabels": {"a": "b"}}},
    ),
}
DIFFERENT: dict[str, tuple[Any, Any]] = {
    "changed value": ({"a": 1}, {"a": 2}),
    "absent value": ({"a": 1}, {}),
    "absent object": ({"a": {"b": 1}}, {}),
    "object became text": ({"a": {"b": 1}}, {"a": "x"}),
    "list became text": ({"a": [1]}, {"a": "x"}),
    "label that was added to a selector": ({"selector": {"a": "b"}}, {"selector": {"a": "b", "c": "d"}}),
    "label that was added to the pods of a budget": (
        {"spec": {"selector": {"matchLabels": {"a": "b"}}}},
        {"spec": {"selector": {"matchLabels": {"a": "b", "c": "d"}}}},
    ),
    "shorter list": ([1, 2], [1]),
    "absent item": ([{"name": "a", "v": 1}], [{"name": "x"}]),
    "other quantity": ({"cpu": "1"}, {"cpu": "2"}),
    "truth is no number": ({"a": True}, {"a": "1"}),
    "number is no truth": ({"a": "1"}, {"a": False}),
    "text that is no quantity": ({"a": "x"}, {"a": "y"}),
    "names that are no text": ([{"name": {"a": 1}}], [{"name": {"a": 2}}]),
    "number beyond all quantities": ("1e999999999", "x"),
    "items that are no objects": ([{"name": "a", "v": 1}], ["a"]),
}


@pytest.mark.parametrize(("desired", "observed"), SAME.values(), ids=SAME.keys())
def test_no_drift(desired: Any, observed: Any) -> None:
    assert matches(desired, observed)


@pytest.mark.parametrize(("desired", "observed"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_drift(desired: Any, observed: Any) -> None:
    assert not matches(desired, observed)
