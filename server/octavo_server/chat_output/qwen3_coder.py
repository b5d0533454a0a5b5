"""Qwen3-Coder: `<tool_call><function=name><parameter=key>value</parameter>…</function></tool_call>`.

Values are bare text; the function's schema says which are strings. A string is passed on as it comes, any other value
once it is whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from octavo_server.chat_output.text_reader import SPACE, Reading, ReadingParser, TextReader

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"


class Qwen3CoderParser(ReadingParser):
    """Makes JSON of what is nearly XML."""

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        """`schemas`: function → schema of its parameters."""
        super().__init__()
        self._schemas = schemas

    def read(self, reader: TextReader) -> Reading[None]:
        while (mark := (yield from reader.content_until(OPEN, FUNCTION))) is not None:
            reader.record()
            yield from reader.skip_space()
            if mark == OPEN and (yield from reader.accept(FUNCTION)) is None:
                reader.content(OPEN + reader.recorded)
                continue
            name = yield from reader.text_until(">")
            if name is None:
                reader.content(mark + reader.recorded)
                continue
            reader.begin_call(name.strip(SPACE))
            if not (yield from self._read_parameters(reader, self._schemas.get(name, {}))):
                continue
            yield from reader.skip_space()
            yield from reader.close(CLOSE)

    def _read_parameters(self, reader: TextReader, schema: Mapping[str, Any]) -> Reading[bool]:
        """Reads to the function's end; False where something else stands there."""
        before = "{"
        while True:
            yield from reader.skip_space()
            if (yield from reader.close(FUNCTION_END)):
                reader.arguments("{}" if before == "{" else "}")
                return True
            if (yield from reader.accept(PARAMETER)) is None:
                return False
            key = yield from reader.text_until(">")
            if key is None:
                return False
            reader.arguments(f"{before}{_json(key.strip(SPACE))}: ")
            before = ", "
            yield from reader.accept("\n")
            if not (yield from self._read_value(reader, _property(schema, key.strip(SPACE)))):
                return False

    def _read_value(self, reader: TextReader, schema: Mapping[str, Any]) -> Reading[bool]:
        # The new line before the tag is the format's own.
        ends = ("\n" + PARAMETER_END, PARAMETER_END)
        if _is_text(schema):
            reader.arguments('"')
            found = yield from reader.until(ends, lambda text: reader.arguments(_json(text)[1:-1]))
            reader.arguments('"' if found else "")
            return found is not None
        parts: list[str] = []
        found = yield from reader.until(ends, parts.append)
        text = "".join(parts)
        # Of a value that was cut off, what there is.
        reader.arguments(_value(text, schema) if found else text)
        return found is not None


def _property(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    properties = schema.get("properties")
    found = properties.get(key) if isinstance(properties, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _types(schema: Mapping[str, Any]) -> set[str]:
    """The JSON types that the schema names, those of its alternatives too."""
    kinds = schema.get("type", ())
    found = {kinds} if isinstance(kinds, str) else {kind for kind in kinds if isinstance(kind, str)}
    for keyword in ("anyOf", "oneOf"):
        alternatives = schema.get(keyword)
        for item in alternatives if isinstance(alternatives, list) else ():
            found |= _types(item) if isinstance(item, Mapping) else set()
    return found


def _is_text(schema: Mapping[str, Any]) -> bool:
    """Whether nothing but a string can be meant; of a schema that does not say, too."""
    if schema.keys() & {"enum", "const", "$ref", "allOf"}:
        return False
    return _types(schema) in ({"string"}, set())


def _value(text: str, schema: Mapping[str, Any]) -> str:
    """JSON text of a bare value; what is no JSON is a string."""
    bare = text.strip(SPACE)
    spelled = {"True": "true", "False": "false", "None": "null"}.get(bare, bare)
    if _types(schema) == {"string", "null"} and spelled != "null":
        return _json(text)
    try:
        json.loads(spelled, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _json(text)
    return spelled


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _json(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
