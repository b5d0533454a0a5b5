"""`response_format` and `structured_outputs`: what an output must look like, as OpenAI and as vLLM say it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from octavo_server.api.json_schema import array, boolean, integer, obj, one_of, optional, optionals, text
from octavo_server.engine.admission import MAX_ALLOWED_TOKEN_IDS, MAX_BAD_WORDS, MAX_STOP_CHARS
from octavo_server.structured_output.grammar import MAX_CHOICES
from octavo_server.structured_output.params import KINDS, STRUCTURED_OUTPUTS, StructuredOutputsParams

if TYPE_CHECKING:
    from octavo_server.api.endpoint import Schema
    from octavo_server.api.fields import Fields

FORMATS = ("text", "json_object", "json_schema")
_NOT_SERVED = ("structural_tag", "disable_fallback", "disable_additional_properties")

_TOKEN_IDS = {"type": "array", "items": {"$ref": "#/components/schemas/TokenId"}, "minItems": 1}
STRUCTURED_PROPERTIES: dict[str, Schema] = {
    "response_format": optional(
        obj(
            {
                "type": one_of(*FORMATS),
                "json_schema": optional(
                    obj({"name": optional(text()), "schema": {"type": ["object", "boolean"]}}, required=("schema",))
                ),
            },
            required=("type",),
        )
    ),
    "structured_outputs": optional(
        obj(
            optionals(
                {
                    "json": {"type": ["object", "string", "boolean", "null"]},
                    "json_object": boolean(),
                    "regex": text(),
                    "choice": array(text(minLength=1), 1, MAX_CHOICES),
                    "grammar": text(),
                    "disable_any_whitespace": boolean(),
                    "whitespace_pattern": text(),
                }
            ),
            description=f"Exactly one of {', '.join(KINDS)}.",
        )
    ),
    "allowed_token_ids": optional({**_TOKEN_IDS, "maxItems": MAX_ALLOWED_TOKEN_IDS}),
    "bad_words": optional(array(text(minLength=1, maxLength=MAX_STOP_CHARS), high=MAX_BAD_WORDS)),
    "truncate_prompt_tokens": optional(integer(-1, description="Keep the prompt's last tokens; -1: as many as fit.")),
}
"""What `/openapi.json` says of the fields that are read here and in `schemas`."""


def read_structured_outputs(fields: Fields) -> StructuredOutputsParams | None:
    """The one that is given, if any.

    Raises:
        InvalidRequestError: both are given, or one cannot be read.
    """
    by_format, by_extension = _response_format(fields), _structured_outputs(fields)
    if by_format is not None and by_extension is not None:
        raise fields.refuse(
            "structured_outputs", "structured_outputs and response_format exclude each other; send one of them"
        )
    return by_format or by_extension


def format_field(fields: Fields) -> str:
    """The one of the two that says it; a `response_format` of type text beside `structured_outputs` says nothing."""
    if fields.get("structured_outputs") is not None or fields.get("response_format") is None:
        return STRUCTURED_OUTPUTS
    return "response_format"


def _response_format(fields: Fields) -> StructuredOutputsParams | None:
    given = fields.obj("response_format")
    if given is None:
        return None
    kind = given.get("type")
    if kind not in FORMATS:
        raise given.fail("type", "one of " + ", ".join(FORMATS))
    if kind != "json_schema" and given.get("json_schema") is not None:
        raise given.refuse(
            "json_schema", f"json_schema stands beside type {kind}; send type json_schema, or leave the schema out"
        )
    if kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputsParams(json_object=True)
    described = given.obj("json_schema")
    if described is None:
        raise given.fail("json_schema", "an object with name and schema")
    # Every answer follows its schema, strict or not; the others are for people.
    described.text("name")
    described.skip(("description", "strict"))
    schema = described.get("schema")
    if not isinstance(schema, dict | bool):
        raise described.fail("schema", "a JSON Schema, which is an object")
    return StructuredOutputsParams(json=_schema_text(described, "schema", schema))


def _structured_outputs(fields: Fields) -> StructuredOutputsParams | None:
    given = fields.obj("structured_outputs")
    if given is None:
        return None
    for name in _NOT_SERVED:
        if given.get(name):
            raise given.refuse(name, f"structured_outputs.{name} is not supported; leave it out")
    values: dict[str, Any] = {name: given.text(name) for name in ("regex", "grammar", "whitespace_pattern")}
    values |= {name: given.boolean(name) for name in ("json_object", "disable_any_whitespace")}
    choice, schema = given.get("choice"), given.get("json")
    if choice is not None and not _are_choices(choice):
        raise given.fail("choice", f"1 to {MAX_CHOICES:,} strings that are not empty")
    if not isinstance(schema, dict | str | bool | None):
        raise given.fail("json", "a JSON Schema, which is an object, or its text")
    params = StructuredOutputsParams(
        json=schema if schema is None or isinstance(schema, str) else _schema_text(given, "json", schema),
        choice=None if choice is None else tuple(choice),
        **values,
    )
    for name in given.unread():
        bare = name.removeprefix("structured_outputs.")
        raise given.refuse(bare, f"{name} is not known; structured_outputs has {', '.join(KINDS)}")
    return params


def _are_choices(given: object) -> bool:
    return isinstance(given, list) and 1 <= len(given) <= MAX_CHOICES and all(isinstance(i, str) and i for i in given)


def _schema_text(fields: Fields, name: str, schema: object) -> str:
    try:
        return json.dumps(schema)
    except RecursionError as error:
        raise fields.refuse(name, "the schema is nested too deeply to be read; flatten it") from error
