"""JSON Schemas as clients send them, for whatever must follow them."""

from __future__ import annotations

from typing import Any


def an_object(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    """A closed object; all properties are required unless said otherwise."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


_STRING, _INTEGER, _BOOLEAN = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}

SCHEMAS: dict[str, Any] = {
    "any": True,
    "object": {"type": "object"},
    "string": _STRING,
    "integer": _INTEGER,
    "number": {"type": "number"},
    "boolean": _BOOLEAN,
    "null": {"type": "null"},
    "type-list": {"type": ["string", "null"]},
    "enum": {"enum": ["red", "green", "blue"]},
    "enum-mixed": {"enum": [1, "one", None, True, {"a": [1]}]},
    "const": {"const": "fixed"},
    "const-object": {"const": {"a": 1, "b": [True, None]}},
    "unicode-enum": {"enum": ["Größe", "東京", "🙂"]},
    "person": an_object(name=_STRING, age=_INTEGER),
    "optional": an_object(required=["a"], a=_INTEGER, b=_BOOLEAN, c=_STRING),
    "nothing-required": an_object(required=[], a=_INTEGER, b=_BOOLEAN),
    "no-properties": {"type": "object", "additionalProperties": False},
    "open-object": {"type": "object", "properties": {"a": _INTEGER}, "required": ["a"]},
    "map": {"type": "object", "additionalProperties": _INTEGER},
    "nested": an_object(outer=an_object(inner=an_object(value=_BOOLEAN))),
    "awkward-names": an_object(**{"a b": _BOOLEAN, 'quo"te': _INTEGER, "naïve": _BOOLEAN, "": _BOOLEAN}),
    "array": {"type": "array", "items": _INTEGER},
    "array-bounds": {"type": "array", "items": _BOOLEAN, "minItems": 2, "maxItems": 4},
    "array-empty": {"type": "array", "items": _INTEGER, "maxItems": 0},
    "array-of-objects": {"type": "array", "items": an_object(x=_INTEGER, y=_INTEGER), "minItems": 1, "maxItems": 3},
    "tuple": {"type": "array", "prefixItems": [_INTEGER, _BOOLEAN], "items": False, "minItems": 2},
    "tuple-rest": {"type": "array", "prefixItems": [_INTEGER], "items": _BOOLEAN, "minItems": 1},
    "matrix": {"type": "array", "items": {"type": "array", "items": _INTEGER, "maxItems": 2}, "maxItems": 2},
    "min-max": {"type": "integer", "minimum": 18, "maximum": 99},
    "negative": {"type": "integer", "minimum": -5, "maximum": -1},
    "exclusive": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "number-bounds": {"type": "number", "minimum": -1.5, "maximum": 2.25},
    "multiple": {"type": "integer", "multipleOf": 5, "minimum": 10, "maximum": 100},
    "length": {"type": "string", "minLength": 2, "maxLength": 5},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "pattern-inside": {"type": "string", "pattern": "[0-9]{2}"},
    "date": {"type": "string", "format": "date"},
    "uuid": {"type": "string", "format": "uuid"},
    "email": {"type": "string", "format": "email"},
    "any-of": {"anyOf": [_INTEGER, an_object(a=_BOOLEAN), {"type": "null"}]},
    "one-of": {"oneOf": [an_object(kind={"const": "a"}, n=_INTEGER), an_object(kind={"const": "b"}, s=_BOOLEAN)]},
    "all-of": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 12}]},
    "ref": {"$ref": "#/$defs/point", "$defs": {"point": an_object(x=_INTEGER, y=_INTEGER)}},
    "definitions": {"$ref": "#/definitions/flag", "definitions": {"flag": _BOOLEAN}},
    "recursive": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": an_object(required=["value"], value=_INTEGER, next={"$ref": "#/$defs/node"}),
        },
    },
    "tool-call": an_object(
        name={"enum": ["get_weather", "get_time"]},
        arguments=an_object(required=["city"], city={"enum": ["Paris", "Rome"]}, unit={"enum": ["c", "f"]}),
    ),
    "described": {**an_object(a=_BOOLEAN), "title": "T", "description": "D", "$schema": "http://json-schema.org/draft-07/schema#"},
}  # fmt: skip
"""Name → schema; each can be followed."""
