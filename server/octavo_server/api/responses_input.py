"""The field `input` of `/v1/responses`: items of a conversation, brought into the messages that chat templates read.

What an assistant said in several items (its reasoning, its text, its calls) becomes one message, as it was one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from octavo_server.api.fields import Fields, checked_text, shown
from octavo_server.api.messages import MAX_MESSAGES, MAX_PARTS
from octavo_server.errors import InvalidRequestError
from octavo_server.tokenizer.call_arguments import parse_call_arguments

if TYPE_CHECKING:
    from octavo_server.api.messages import Message

Item = Mapping[str, Any]
FindItem = Callable[[str], Item | None]
"""A stored item by its id."""

_ROLES = ("user", "system", "developer", "assistant")
# Type of a text part -> the field that holds its text.
_TEXT_PARTS = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "refusal": "refusal",
    "reasoning_text": "text",
    "summary_text": "text",
}


def parse_input(fields: Fields, find_item: FindItem) -> list[Item]:
    """The items, each an object whose type is known, references resolved; a text is one message of the user.

    Raises:
        InvalidRequestError: naming the item.
    """
    given = fields.get("input")
    if isinstance(given, str):
        return [_message_item("user", checked_text(given, "input"))]
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_MESSAGES:
        raise fields.fail("input", f"a string or an array of 1 to {MAX_MESSAGES:,} items")
    return [_item(value, f"input[{index}]", find_item) for index, value in enumerate(given)]


def messages_of(items: Iterable[Item], where: str = "input") -> tuple[Message, ...]:
    """The conversation that the items are.

    Raises:
        InvalidRequestError: naming the item and its field.
    """
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        message = _message(Fields(item, f"{where}[{index}]."), f"{where}[{index}]")
        if messages and _is_one_answer(messages[-1], message):
            _join(messages[-1], message)
        else:
            messages.append(message)
    for message in messages:
        # Templates tell null, beside calls, from an empty text.
        if message["content"] is None and not message.get("tool_calls"):
            message["content"] = ""
    return tuple(messages)


def _item(value: object, where: str, find_item: FindItem) -> Item:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{where} must be an object, got {shown(value)}", param=where)
    fields = Fields(value, f"{where}.")
    given = fields.get("type")
    kind = ("message" if "role" in value else None) if given is None else given
    if kind == "item_reference" or (kind is None and "id" in value):
        name = fields.text("id", max_chars=1024)
        found = None if name is None else find_item(name)
        if found is None:
            raise fields.fail("id", "the id of an item of a stored response")
        return found
    if not isinstance(kind, str) or kind not in _READERS:
        raise fields.fail("type", "one of " + ", ".join([*_READERS, "item_reference"]))
    return {**value, "type": kind}


def _message_item(role: str, text: str) -> Item:
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}


def _message(fields: Fields, where: str) -> dict[str, Any]:
    return _READERS[fields.get("type")](fields, where)


def _read_message(fields: Fields, where: str) -> dict[str, Any]:
    role = fields.get("role")
    if role not in _ROLES:
        raise fields.fail("role", "one of " + ", ".join(_ROLES))
    return {"role": "system" if role == "developer" else role, "content": _text(fields, "content", where)}


def _read_call(fields: Fields, where: str) -> dict[str, Any]:
    name, call_id = _needed(fields, "name"), _needed(fields, "call_id")
    arguments = parse_call_arguments(_needed(fields, "arguments"))
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _read_call_output(fields: Fields, where: str) -> dict[str, Any]:
    return {"role": "tool", "content": _text(fields, "output", where), "tool_call_id": _needed(fields, "call_id")}


def _read_reasoning(fields: Fields, where: str) -> dict[str, Any]:
    """The thoughts themselves, or where they were kept back, their summary."""
    if fields.get("encrypted_content"):
        raise fields.refuse("encrypted_content", f"{where}.encrypted_content is not supported; leave it out")
    texts = [_text(fields, name, where) for name in ("content", "summary") if fields.get(name)]
    return {"role": "assistant", "content": None, "reasoning": texts[0] if texts else ""}


_READERS: dict[str, Callable[[Fields, str], dict[str, Any]]] = {
    "message": _read_message,
    "function_call": _read_call,
    "function_call_output": _read_call_output,
    "reasoning": _read_reasoning,
}


def _is_one_answer(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> bool:
    """Whether both are what the assistant said at once; two texts are two answers."""
    if not earlier["role"] == later["role"] == "assistant" or "reasoning" in later:
        return False
    return later["content"] is None or (earlier["content"] is None and not earlier.get("tool_calls"))


def _join(earlier: dict[str, Any], later: Mapping[str, Any]) -> None:
    if later["content"] is not None:
        earlier["content"] = later["content"]
    if "tool_calls" in later:
        earlier["tool_calls"] = [*earlier.get("tool_calls", []), *later["tool_calls"]]


def _text(fields: Fields, name: str, where: str) -> str:
    """A text, or the texts of parts."""
    value = fields.get(name)
    if isinstance(value, str):
        return checked_text(value, f"{where}.{name}")
    if not isinstance(value, list) or len(value) > MAX_PARTS:
        raise fields.fail(name, f"a string or an array of at most {MAX_PARTS:,} parts")
    texts = []
    for number, item in enumerate(value):
        place = f"{where}.{name}[{number}]"
        part = Fields(item if isinstance(item, dict) else {}, f"{place}.")
        kind = part.get("type")
        if not isinstance(kind, str) or kind not in _TEXT_PARTS:
            raise part.refuse(
                "type",
                f"{place} must be a part of text, got {shown(kind)}; images, audio and files are not supported yet",
            )
        texts.append(_needed(part, _TEXT_PARTS[kind]))
    return "\n".join(texts)


def _needed(fields: Fields, name: str) -> str:
    text = fields.text(name)
    if text is None:
        raise fields.fail(name, "a string")
    return text
