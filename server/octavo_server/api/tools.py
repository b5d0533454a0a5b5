"""The functions that a client offers and how the model is to use them: `tools`, `tool_choice`, `parallel_tool_calls`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from octavo_server.api.fields import Fields, checked_json, shown
from octavo_server.api.schema_fault import schema_fault
from octavo_server.errors import InvalidRequestError

MAX_TOOLS = 128
_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
NAME_PATTERN = r"^[a-zA-Z0-9_.-]{1,64}$"
_MAX_DESCRIPTION_CHARS = 2**16

# Keywords whose values are no schemas.
_DATA = frozenset({"const", "enum", "default", "examples"})

Definition = Mapping[str, Any]
"""`{"type": "function", "function": {"name", "description", "parameters"}}`, as templates read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What may be called, and whether it must be."""

    definitions: tuple[Definition, ...] = ()
    """Empty where the model is not to call anything."""
    mode: Literal["none", "auto", "required"] = "none"
    forced_name: str | None = None
    """The one function that must be called; `mode` is required."""
    parallel: bool = True
    """Whether there may be several calls in one answer."""

    @property
    def schemas(self) -> dict[str, Mapping[str, Any]]:
        """Function → schema of its parameters."""
        return {item["function"]["name"]: parameters_of(item) for item in self.definitions}


def parse_tools(fields: Fields) -> Tools:
    """The fields about tools.

    Raises:
        InvalidRequestError: naming the field.
    """
    given = fields.array("tools", max_items=MAX_TOOLS) or []
    definitions = tuple(_definition(item, index, fields) for index, item in enumerate(given))
    names = [item["function"]["name"] for item in definitions]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise fields.refuse("tools", f"tools[{index}]: two functions are named {name!r}; names must differ")
    parallel = fields.boolean("parallel_tool_calls", default=True)
    choice = fields.get("tool_choice")
    if isinstance(choice, dict):
        return _chosen(fields, definitions, parallel)
    if choice is None:
        choice = "auto" if definitions else "none"
    if choice not in ("none", "auto", "required"):
        raise fields.fail("tool_choice", "none, auto, required or an object that names a function")
    if choice == "required" and not definitions:
        raise fields.refuse("tool_choice", "tool_choice is required, but there are no tools; send some")
    if choice == "none" or not definitions:
        return Tools()
    return Tools(definitions=definitions, mode="required" if choice == "required" else "auto", parallel=parallel)


def parameters_of(definition: Definition) -> Mapping[str, Any]:
    """The schema of a function's parameters; one without takes none."""
    found: Mapping[str, Any] = definition["function"].get("parameters") or _NO_PARAMETERS
    # As OpenAI: arguments are an object, whether or not the schema says so.
    return found if "type" in found else {"type": "object", **found}


def forced_calls(tools: Tools) -> dict[str, Any]:
    """The JSON Schema of an answer that must call: the named function's arguments, or an array of calls."""
    if tools.forced_name is not None:
        return dict(tools.schemas[tools.forced_name])
    calls = [_call_schema(name) for name in tools.schemas]
    return {
        "type": "array",
        "minItems": 1,
        **({} if tools.parallel else {"maxItems": 1}),
        "items": calls[0] if len(calls) == 1 else {"anyOf": calls},
        # Each function's schema is a document of its own, to whose root its references lead.
        "$defs": {name: _moved(schema, f"#/$defs/{name}") for name, schema in tools.schemas.items()},
    }


def _call_schema(name: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/{name}"}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Any, root: str) -> Any:
    """A schema whose references lead to `root` instead of the document's root."""
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: root + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else value
        if key in _DATA
        else _moved(value, root)
        for key, value in schema.items()
    }


def _definition(value: object, index: int, request: Fields) -> Definition:
    where = f"tools[{index}]"
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{where} must be an object with type and function, got {shown(value)}", param=where)
    fields = Fields(value, f"{where}.")
    if fields.get("type") != "function":
        raise fields.fail("type", "function, the one kind of tool that is supported")
    function = fields.obj("function")
    if function is None:
        raise fields.fail("function", "an object with name, description and parameters")
    name = function.text("name")
    if name is None or re.match(NAME_PATTERN, name) is None or name.endswith("\n"):
        raise function.fail("name", "1 to 64 letters, digits, _, . or -")
    function.text("description", max_chars=_MAX_DESCRIPTION_CHARS)
    function.boolean("strict")
    parameters = function.get("parameters")
    if parameters is not None:
        _check_parameters(function, parameters)
    checked_json(value, where)
    request.ignore([*fields.unread(), *function.unread()])
    return value


def _check_parameters(function: Fields, parameters: object) -> None:
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise function.fail("parameters", 'a JSON Schema of an object (`"type": "object"`)')
    fault = schema_fault(parameters)
    if fault is not None:
        raise function.refuse("parameters", f"the parameters of tools are no JSON Schema: {fault}")


def _chosen(fields: Fields, definitions: tuple[Definition, ...], parallel: bool) -> Tools:
    """`tool_choice` as an object: one function, or OpenAI's `allowed_tools`."""
    choice = fields.obj("tool_choice")
    assert choice is not None
    kind = choice.get("type")
    if kind == "allowed_tools":
        return _allowed(choice, definitions, parallel)
    if kind != "function":
        raise choice.fail("type", "function or allowed_tools")
    name = _name_of(choice, definitions)
    only = tuple(item for item in definitions if item["function"]["name"] == name)
    assert only
    return Tools(definitions=definitions, mode="required", forced_name=name, parallel=parallel)


def _allowed(choice: Fields, definitions: tuple[Definition, ...], parallel: bool) -> Tools:
    """Only some of the tools: the model is shown no others."""
    allowed = choice.obj("allowed_tools")
    if allowed is None:
        raise choice.fail("allowed_tools", "an object with mode and tools")
    mode = allowed.get("mode")
    if mode not in ("auto", "required"):
        raise allowed.fail("mode", "auto or required")
    items = allowed.array("tools", max_items=MAX_TOOLS)
    if not items:
        raise allowed.fail("tools", "a non-empty array of tools")
    wanted = {
        _name_of(Fields(item if isinstance(item, dict) else {}, f"tool_choice.allowed_tools.tools[{n}]."), definitions)
        for n, item in enumerate(items)
    }
    kept = tuple(item for item in definitions if item["function"]["name"] in wanted)
    return Tools(definitions=kept, mode="required" if mode == "required" else "auto", parallel=parallel)


def _name_of(fields: Fields, definitions: Sequence[Definition]) -> str:
    """The function that `{"type": "function", "function": {"name": …}}` names."""
    function = fields.obj("function")
    name = None if function is None else function.text("name")
    if function is None or name is None:
        raise fields.fail("function", "an object with the name of one of the tools")
    if not any(item["function"]["name"] == name for item in definitions):
        raise function.refuse("name", f"tool_choice names the function {shown(name)}, which is not among the tools")
    return name
