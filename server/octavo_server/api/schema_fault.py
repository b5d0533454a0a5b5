"""What is wrong with a JSON Schema that models are shown: its form alone, since templates walk through it.

Whether a grammar can be made of it is another question, which is asked where one is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_MAX_DEPTH = 64
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLES = ("additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")


def schema_fault(schema: object, where: str = "", depth: int = 0) -> str | None:
    """The first fault, with the place; None for a schema in the form of JSON Schema."""
    place = where or "it"
    if depth > _MAX_DEPTH:
        return f"it is nested deeper than {_MAX_DEPTH}"
    if isinstance(schema, bool):
        return None
    if not isinstance(schema, dict):
        return f"{place} must be an object"
    own = _own_fault(schema, place)
    if own is not None:
        return own
    faults = (schema_fault(part, f"{where}.{name}".lstrip("."), depth + 1) for name, part in _parts(schema))
    return next((fault for fault in faults if fault is not None), None)


def _own_fault(schema: dict[str, Any], place: str) -> str | None:
    kinds = schema.get("type", [])
    names = kinds if isinstance(kinds, list) else [kinds]
    if not all(isinstance(name, str) and name in _TYPES for name in names):
        return f"type of {place} must be one of {', '.join(sorted(_TYPES))}, or an array of them"
    for keyword in _MAPS:
        if not isinstance(schema.get(keyword, {}), dict):
            return f"{keyword} of {place} must be an object"
    for keyword in (*_LISTS, "enum", "required"):
        if not isinstance(schema.get(keyword, []), list):
            return f"{keyword} of {place} must be an array"
    if not all(isinstance(name, str) for name in schema.get("required", [])):
        return f"required of {place} must be an array of names"
    return None


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, object]]:
    for keyword in _MAPS:
        yield from ((f"{keyword}.{name}"[:100], part) for name, part in schema.get(keyword, {}).items())
    for keyword in _LISTS:
        yield from ((f"{keyword}[{number}]", part) for number, part in enumerate(schema.get(keyword, [])))
    for keyword in _SINGLES:
        if keyword in schema:
            yield keyword, schema[keyword]
    items = schema.get("items", True)
    # An array of schemas is the older way of prefixItems.
    yield from (
        ((f"items[{n}]", part) for n, part in enumerate(items)) if isinstance(items, list) else [("items", items)]
    )
