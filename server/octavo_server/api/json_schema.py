"""Short spellings of JSON Schema, for the endpoints' descriptions. Values only, no checking.

An optional field may be null everywhere, as `Fields` reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from octavo_server.api.endpoint import Schema

MODEL: Schema = {"$ref": "#/components/schemas/Model"}
"""One of the names that this server serves."""
TOKEN_ID: Schema = {"$ref": "#/components/schemas/TokenId"}
"""Within the model's vocabulary."""
ERROR: Schema = {"$ref": "#/components/schemas/Error"}


def text(**more: Any) -> dict[str, Any]:
    return {"type": "string", **more}


def integer(low: int | None = None, high: int | None = None, **more: Any) -> dict[str, Any]:
    """A whole number in [low, high]."""
    return {"type": "integer", **_bounds(low, high), **more}


def number(low: float | None = None, high: float | None = None, **more: Any) -> dict[str, Any]:
    """A number in [low, high]."""
    return {"type": "number", **_bounds(low, high), **more}


def boolean(**more: Any) -> dict[str, Any]:
    return {"type": "boolean", **more}


def array(items: Schema, low: int = 0, high: int | None = None, **more: Any) -> dict[str, Any]:
    """An array of low to high items."""
    bounds = {"minItems": low} if low else {}
    return {"type": "array", "items": items, **bounds, **({} if high is None else {"maxItems": high}), **more}


def obj(properties: Mapping[str, Schema], *, required: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """An object; what it does not name may be there too."""
    return {
        "type": "object",
        "properties": dict(properties),
        **({"required": list(required)} if required else {}),
        **more,
    }


def record(properties: Mapping[str, Schema], **more: Any) -> dict[str, Any]:
    """An object of an answer: everything that it names is there."""
    return obj(properties, required=list(properties), **more)


def one_of(*values: Any) -> dict[str, Any]:
    """One of the values themselves."""
    return {"enum": list(values)}


def any_of(*schemas: Schema) -> dict[str, Any]:
    return {"anyOf": list(schemas)}


def optional(schema: Schema) -> dict[str, Any]:
    """The same or null."""
    if isinstance(schema.get("type"), str):
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def optionals(properties: Mapping[str, Schema]) -> dict[str, Any]:
    """Each of them optional."""
    return {name: optional(schema) for name, schema in properties.items()}


def _bounds(low: float | None, high: float | None) -> dict[str, Any]:
    return {
        **({} if low is None else {"minimum": low}),
        **({} if high is None else {"maximum": high}),
    }
