"""Reads calls that are JSON objects: `{"name": …, "arguments": {…}}`, alone or in an array, keys in any order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from octavo_server.chat_output.json_cursor import JsonCursor
from octavo_server.chat_output.text_reader import Reading, TextReader, string_value

_ARGUMENTS = ("arguments", "parameters")
# What some models put beside name and arguments.
_BESIDE = ("type", "id", "index")


@dataclass(slots=True)
class CallReading:
    """How far the reading of one call came."""

    begun: bool = False
    """The name was read, and the call is open."""
    complete: bool = False
    """The object ended as it should."""
    has_arguments: bool = False
    kept: list[str] = field(default_factory=list)
    """Arguments that came before the name."""


def read_call(reader: TextReader, is_name: Callable[[str], bool]) -> Reading[CallReading]:
    """Reads one object; what was read of one that has not begun is the caller's to put back.

    Args:
        reader: stands at the object.
        is_name: whether a function may be called so.
    """
    call = CallReading()
    if (yield from reader.accept("{")) is None:
        return call
    yield from reader.skip_space()
    while True:
        if call.begun:
            reader.record()
        key = yield from reader.json_string()
        if key is None:
            return call
        yield from reader.skip_space()
        if (yield from reader.accept(":")) is None:
            return call
        yield from reader.skip_space()
        if not (yield from _read_member(reader, call, key, is_name)):
            return call
        yield from reader.skip_space()
        if (yield from reader.accept(",")) is None:
            break
        yield from reader.skip_space()
    if (yield from reader.peek()) != "}" or not call.begun:
        return call
    yield from reader.accept("}")
    if not call.has_arguments:
        reader.arguments("{}")
    call.complete = True
    return call


def read_calls(reader: TextReader, is_name: Callable[[str], bool]) -> Reading[bool]:
    """Reads an array of calls; whether any has begun. What is no call in it becomes content."""
    reader.record()
    yield from reader.accept("[")
    any_begun = False
    while True:
        yield from reader.skip_space()
        call = yield from read_call(reader, is_name)
        any_begun |= call.begun
        if not call.begun:
            if any_begun:
                reader.content(reader.recorded)
            return any_begun
        if not call.complete:
            return True
        reader.record()
        yield from reader.skip_space()
        if (yield from reader.accept(",")) is None:
            yield from reader.accept("]")
            return True


def read_arguments(reader: TextReader) -> Reading[bool]:
    """Passes the arguments of the open call on, an object or a string that holds one; False where they break off."""
    if (yield from reader.peek()) == "{":
        return (yield from reader.json_value(reader.arguments))
    parts: list[str] = []
    is_whole = yield from reader.json_value(parts.append)
    if is_whole:
        reader.arguments(_as_object_text("".join(parts)))
    else:
        reader.content("".join(parts))
    return is_whole


def _read_member(reader: TextReader, call: CallReading, key: str, is_name: Callable[[str], bool]) -> Reading[bool]:
    """Reads one value; False where it breaks off, or this is no call."""
    if key == "name" and not call.begun:
        name = yield from reader.json_string()
        if name is None or not is_name(name):
            return False
        call.begun = True
        reader.begin_call(name)
        reader.arguments("".join(call.kept))
        return True
    if key in _ARGUMENTS and not call.has_arguments:
        call.has_arguments = True
        if call.begun:
            return (yield from read_arguments(reader))
        text = yield from reader.json_text()
        if text is not None:
            call.kept.append(_as_object_text(text))
        return text is not None
    if key in _BESIDE:
        return (yield from reader.json_text()) is not None
    if not call.begun:
        return False
    is_whole = (yield from reader.json_text()) is not None
    reader.content(reader.recorded)
    return is_whole


def _as_object_text(text: str) -> str:
    """The arguments' JSON text: of a string that holds an object that object, of null and an empty string no arguments."""
    if text.startswith('"'):
        inside = string_value(text).strip()
        text = inside if not inside or is_object_text(inside) else text
    return "{}" if text in ("", "null") else text


def is_object_text(text: str) -> bool:
    """Whether it is a JSON object and nothing else."""
    cursor = JsonCursor()
    taken, _ = cursor.take(text)
    return text.startswith("{") and cursor.is_complete and taken == len(text)
