"""The body of `/v1/chat/completions`, parsed into frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from octavo_server.api.conversation import EFFORTS, Conversation
from octavo_server.api.fields import Fields, checked_json
from octavo_server.api.messages import parse_messages
from octavo_server.api.schemas import NOT_SERVED_YET, GenerationOptions, parse_options, refuse_not_served
from octavo_server.api.tools import parse_tools
from octavo_server.engine.admission import INT64, INTEGER_RANGES

if TYPE_CHECKING:
    from octavo_server.models.config import GenerationDefaults

MAX_DOCUMENTS = 1000

# Known, and refused by name wherever their value would change something.
_NOT_SERVED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "functions": (([],), "functions is OpenAI's old way; use tools"),
    "function_call": (("none", "auto"), "function_call is OpenAI's old way; use tool_choice"),
    "chat_template": ((), "chat_template cannot be sent; start the server with --chat-template"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """Body of `/v1/chat/completions`."""

    options: GenerationOptions
    conversation: Conversation
    echo: bool
    """Put the last message's text in front, where it is an assistant's."""


def parse_chat(body: Mapping[str, Any], defaults: GenerationDefaults) -> ChatRequest:
    """Checks and types a chat body.

    Raises:
        InvalidRequestError: naming the field.
    """
    fields = Fields(body)
    refuse_not_served(fields, NOT_SERVED_YET)
    for name, (neutral, message) in _NOT_SERVED.items():
        value = fields.get(name)
        if value is not None and value not in neutral:
            raise fields.refuse(name, message)
    conversation = _conversation(fields)
    echo = fields.boolean("echo")
    max_tokens = fields.integer("max_tokens", 1, INT64)
    max_completion_tokens = fields.integer("max_completion_tokens", 1, INT64)
    if max_completion_tokens is not None:
        max_tokens = max_completion_tokens
    options = parse_options(fields, defaults, logprobs=_logprobs(fields), max_tokens=max_tokens)
    return ChatRequest(options=options, conversation=conversation, echo=echo)


def parse_rendering(fields: Fields, *, add_generation_prompt: bool) -> Conversation:
    """The messages and how to render them; `add_generation_prompt` is for a client that does not say.

    Raises:
        InvalidRequestError: naming the field.
    """
    begins_answer = fields.boolean("add_generation_prompt", default=add_generation_prompt)
    continue_final_message = fields.boolean("continue_final_message")
    if continue_final_message and fields.get("add_generation_prompt"):
        raise fields.refuse(
            "continue_final_message", "continue_final_message and add_generation_prompt exclude each other; send one"
        )
    kwargs = fields.get("chat_template_kwargs")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise fields.fail("chat_template_kwargs", "an object")
    return Conversation(
        messages=parse_messages(fields),
        add_generation_prompt=begins_answer and not continue_final_message,
        continue_final_message=continue_final_message,
        template_kwargs=kwargs or {},
    )


def _conversation(fields: Fields) -> Conversation:
    effort = fields.text("reasoning_effort")
    if effort is not None and effort not in EFFORTS:
        raise fields.fail("reasoning_effort", "one of " + ", ".join(EFFORTS))
    return replace(
        parse_rendering(fields, add_generation_prompt=True),
        tools=parse_tools(fields),
        documents=_documents(fields),
        reasoning_effort=effort,
        include_reasoning=fields.boolean("include_reasoning", default=True),
        add_special_tokens=fields.boolean("add_special_tokens"),
    )


def _documents(fields: Fields) -> tuple[Mapping[str, Any], ...]:
    items = fields.array("documents", max_items=MAX_DOCUMENTS) or []
    if not all(isinstance(item, dict) for item in items):
        raise fields.fail("documents", "an array of objects such as {title, text}")
    checked_json(items, "documents")
    return tuple(items)


def _logprobs(fields: Fields) -> int | None:
    count = fields.integer("top_logprobs", *INTEGER_RANGES["logprobs"])
    if fields.boolean("logprobs"):
        return count or 0
    if count:
        raise fields.refuse("top_logprobs", "top_logprobs needs logprobs: true; set it or leave top_logprobs out")
    return None
