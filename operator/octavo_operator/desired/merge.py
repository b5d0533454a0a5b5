"""Strategic merge of a podTemplate overlay, by the merge keys of core/v1.

Lists of the table are merged by their key, all others are replaced. `null` removes a field, `$patch: delete` an item,
`$patch: replace` takes an object or a whole list as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo_operator.api.types import JsonObject

# list field: the field by which its items are told apart
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "schedulingGates": "name",
}


def strategic_merge(base: JsonObject, patch: JsonObject) -> dict[str, Any]:
    """A new object; neither argument is changed."""
    if patch.get("$patch") == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    merged = dict(base)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            current = merged.get(key)
            merged[key] = strategic_merge(current if isinstance(current, Mapping) else {}, value)
        elif isinstance(value, list) and key in MERGE_KEYS:
            merged[key] = _merge_list(merged.get(key) or [], value, MERGE_KEYS[key])
        else:
            merged[key] = value
    return merged


def _merge_list(base: Any, patch: list[Any], merge_key: str) -> list[Any]:
    if not all(isinstance(item, Mapping) for item in [*base, *patch]):
        # No list of objects, so there is nothing to tell them apart by; the API server says what it wants instead.
        return patch
    if any(dict(item) == {"$patch": "replace"} for item in patch):
        return [item for item in patch if dict(item) != {"$patch": "replace"}]
    merged = list(base)
    for item in patch:
        at = next((i for i, known in enumerate(merged) if known.get(merge_key) == item.get(merge_key)), None)
        if item.get("$patch") == "delete":
            merged = [known for i, known in enumerate(merged) if i != at]
        elif at is None:
            merged.append(strategic_merge({}, item))
        else:
            merged[at] = strategic_merge(merged[at], item)
    return merged
