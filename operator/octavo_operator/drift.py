"""Whether an object is as we want it, seen past what the API server adds, defaults and rewrites.

What others add (fields, annotations, list items with names of their own) is no drift; what we set and somebody changed
is. A field that we no longer set shows in `names.APPLIED_ANNOTATION`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo_operator.api.quantity import parse_quantity

# Lists whose items bear a key under which other managers may add theirs.
_KEYS = ("name", "mountPath", "uid")


_WHOLE = frozenset({"selector", "podSelector", "labelSelector", "nodeSelector"})
"""Objects that mean something else with one more label; the API server takes them as one value too."""


def matches(desired: Any, observed: Any) -> bool:
    """Every field of `desired` is in `observed` with an equal value; one that is absent is as good as empty."""
    if isinstance(desired, Mapping):
        found = observed if isinstance(observed, Mapping) else {}
        return all(
            matches(value, found.get(key)) and (key not in _WHOLE or matches(found.get(key), value))
            for key, value in desired.items()
        )
    if isinstance(desired, list):
        return _matches_list(desired, observed if isinstance(observed, list) else [])
    if observed is None:
        return desired in (None, "", False, 0)
    return desired == observed or _same_quantity(desired, observed)


def _matches_list(desired: list[Any], observed: list[Any]) -> bool:
    key = _key_of(desired)
    if key is None:
        return len(desired) == len(observed) and all(map(matches, desired, observed))
    by_key = {item[key]: item for item in observed if isinstance(item, Mapping) and key in item}
    return all(matches(item, by_key.get(item[key])) for item in desired)


def _key_of(items: list[Any]) -> str | None:
    return next((key for key in _KEYS if items and _tells_apart(items, key)), None)


def _tells_apart(items: list[Any], key: str) -> bool:
    keys = [item[key] for item in items if isinstance(item, Mapping) and _is_key(item, key)]
    return len(set(keys)) == len(items)


def _is_key(item: Mapping[str, Any], key: str) -> bool:
    """A person may write anything into the parts that are passed on as they are."""
    return isinstance(item.get(key), str)


def _same_quantity(desired: Any, observed: Any) -> bool:
    """Whether "1000m" and "1", or 0.5 and "500m", are one quantity; the API server stores the shortest form."""
    if isinstance(desired, bool) or isinstance(observed, bool):
        return False
    left, right = parse_quantity(str(desired)), parse_quantity(str(observed))
    return left is not None and left == right
