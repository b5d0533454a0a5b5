"""Faults in the form of a schema; the oracle is jsonschema's own schema of schemas."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from octavo_server.api.schema_fault import schema_fault
from octavo_testing.schemas import SCHEMAS

FAULTY: list[Any] = [
    "string",
    {"type": "strin"},
    {"type": 5},
    {"type": ["string", {}]},
    {"properties": {"a": "string"}},
    {"properties": {"a": {"items": 5}}},
    {"items": {"anyOf": {"type": "string"}}},
    {"$defs": []},
    {"required": "a"},
    {"required": [1]},
    {"allOf": [{"not": []}]},
    {"additionalProperties": "no"},
    {"patternProperties": {"x": None}},
]


@pytest.mark.parametrize("schema", FAULTY)
def test_a_fault_is_told_with_its_place(schema: Any) -> None:
    with pytest.raises((jsonschema.SchemaError, TypeError)):
        jsonschema.Draft202012Validator.check_schema(schema)

    assert schema_fault(schema)


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_jsonschema_takes_has_none(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])

    assert schema_fault(SCHEMAS[name]) is None


def test_the_place_is_named() -> None:
    schema = {"properties": {"a": {"anyOf": [{}, {"items": {"type": "x"}}]}}}

    assert str(schema_fault(schema)).startswith("type of properties.a.anyOf[1].items must be one of array, boolean")


def test_a_schema_has_a_depth() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100):
        schema = {"items": schema}

    assert "nested deeper" in str(schema_fault(schema))
    assert schema_fault({"items": [{"type": "string"}]}) is None
