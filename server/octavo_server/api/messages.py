"""The messages of a conversation, checked and brought into the form that chat templates read.

OpenAI's shapes; beside them `reasoning` (or `reasoning_content`) of earlier answers, as vLLM takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from octavo_server.api.fields import Fields, checked_json, checked_text, shown
from octavo_server.errors import InvalidRequestError
from octavo_server.tokenizer.call_arguments import CallArguments, parse_call_arguments

if TYPE_CHECKING:
    from collections.abc import Iterator

Message = Mapping[str, Any]
"""`role`, `content`, and where they apply `name`, `reasoning`, `tool_calls`, `tool_call_id`."""

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_MESSAGES, MAX_PARTS, MAX_CALLS = 10_000, 1000, 128
_MAX_NAME_CHARS = 256
# Part type -> the field that holds its text.
_TEXT_PARTS = {"text": "text", "refusal": "refusal"}
_REASONING_FIELDS = ("reasoning", "reasoning_content", "thinking")


def parse_messages(fields: Fields) -> tuple[Message, ...]:
    """The field `messages`.

    Raises:
        InvalidRequestError: naming the message and its field.
    """
    given = fields.array("messages", max_items=MAX_MESSAGES)
    if not given:
        raise fields.fail("messages", "a non-empty array of messages")
    return tuple(_message(item, index, fields) for index, item in enumerate(given))


def _message(value: object, index: int, request: Fields) -> Message:
    where = f"messages[{index}]"
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{where} must be an object with role and content, got {shown(value)}", param=where)
    fields = Fields(value, f"{where}.")
    role = fields.get("role")
    if role == "function" or fields.get("function_call"):
        old_way = "role" if role == "function" else "function_call"
        raise fields.refuse(
            old_way, f"{where}: the role function and function_call are OpenAI's old way; use role tool"
        )
    if role not in ROLES:
        raise fields.fail("role", "one of " + ", ".join(ROLES))
    message: dict[str, Any] = {"role": "system" if role == "developer" else role}
    if role == "assistant":
        message |= _assistant(fields, where)
    else:
        message["content"] = _content(fields, where)
    if role == "tool":
        message["tool_call_id"] = _needed_text(fields, "tool_call_id", "the id of the call that this is the result of")
    name = fields.text("name", max_chars=_MAX_NAME_CHARS)
    # A client that sends an answer back sends its empty fields too.
    request.ignore(field for field in fields.unread() if value[field.removeprefix(f"{where}.")] not in (None, []))
    return {**message, "name": name} if name else message


def _assistant(fields: Fields, where: str) -> dict[str, Any]:
    """What only an assistant's message has; its content may be null where it has something else."""
    message: dict[str, Any] = {}
    # A client that sends back both names sends the same text twice.
    thoughts = [fields.text(name) for name in _REASONING_FIELDS]
    reasoning = next((text for text in thoughts if text is not None), None)
    if reasoning is not None:
        message["reasoning"] = reasoning
    refusal = fields.text("refusal")
    calls = [_call(item, number, where) for number, item in enumerate(_calls_of(fields))]
    if calls:
        message["tool_calls"] = calls
    is_empty = fields.get("content") is None or (calls and fields.get("content") == [])
    content = None if is_empty else _content(fields, where)
    if content is None and refusal is not None:
        content = refusal
    if content is None and not calls and reasoning is None:
        raise fields.fail("content", "a string or a non-empty array of parts, since there are no tool_calls")
    # Templates tell null, beside calls, from an empty text.
    message["content"] = content if content is not None or calls else ""
    return message


def _calls_of(fields: Fields) -> list[Any]:
    return fields.array("tool_calls", max_items=MAX_CALLS) or []


def _call(value: object, number: int, where: str) -> dict[str, Any]:
    """One earlier call, as OpenAI writes it; its arguments become the object that they are the text of."""
    fields = Fields(value if isinstance(value, dict) else {}, f"{where}.tool_calls[{number}].")
    if fields.get("type") not in ("function", None):
        raise fields.fail("type", "function, the one kind of call that is supported")
    function = fields.obj("function")
    if function is None:
        raise fields.fail("function", "an object with name and arguments")
    identity = fields.text("id")
    name = _needed_text(function, "name", "the function's name")
    given = function.get("arguments")
    arguments: CallArguments | str
    if isinstance(given, dict):
        checked_json(given, f"{where}.tool_calls[{number}].function.arguments")
        arguments = CallArguments(given)
    else:
        arguments = parse_call_arguments(function.text("arguments") or "")
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return call if identity is None else {"id": identity, **call}


def _content(fields: Fields, where: str) -> str:
    value = fields.get("content")
    if isinstance(value, str):
        return checked_text(value, f"{where}.content")
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_PARTS:
        raise fields.fail("content", "a string or a non-empty array of parts")
    return "\n".join(_part_texts(value, where))


def _part_texts(parts: list[Any], where: str) -> Iterator[str]:
    for number, item in enumerate(parts):
        part = Fields(item if isinstance(item, dict) else {}, f"{where}.content[{number}].")
        kind = part.get("type")
        if not isinstance(kind, str) or kind not in _TEXT_PARTS:
            raise part.refuse(
                "type",
                f"{where}.content[{number}] must be a part of type text, got {shown(kind)}; images, audio and files "
                f"are not supported yet",
            )
        yield _needed_text(part, _TEXT_PARTS[kind], "a string")


def _needed_text(fields: Fields, name: str, what: str) -> str:
    text = fields.text(name)
    if text is None:
        raise fields.fail(name, what)
    return text
