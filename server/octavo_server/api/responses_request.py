"""The body of `/v1/responses`, parsed into frozen values; what chat has too is read by chat's own readers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from octavo_server.api.conversation import EFFORTS, Conversation
from octavo_server.api.fields import Fields, checked_text, shown
from octavo_server.api.responses_input import FindItem, messages_of, parse_input
from octavo_server.api.schemas import NOT_SERVED_YET, GenerationOptions, parse_options, refuse_not_served
from octavo_server.api.structured_fields import FORMATS
from octavo_server.api.tools import Tools, parse_tools
from octavo_server.engine.admission import INT64, INTEGER_RANGES
from octavo_server.errors import InvalidRequestError
from octavo_server.structured_output.params import StructuredOutputsParams

if TYPE_CHECKING:
    from octavo_server.models.config import GenerationDefaults

MAX_METADATA, MAX_KEY_CHARS, MAX_VALUE_CHARS = 16, 64, 512
LOGPROBS = "message.output_text.logprobs"
FORMAT_FIELD = "text.format"
"""Where this endpoint says what an answer must look like."""
# What else a client may ask to be told changes no answer here: there are no hosted tools and no hidden reasoning.
INCLUDES = (
    LOGPROBS,
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)
SUMMARIES = ("auto", "concise", "detailed")
# Known, and refused by name wherever their value would change something.
NOT_SERVED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "conversation": ((), "conversation is not supported; use previous_response_id, or send the whole input"),
    "prompt": ((), "prompt (a stored template) is not supported; send instructions and input"),
    "context_management": (([],), "context_management is not supported; leave it out"),
    "response_format": ((), "response_format is chat's; use text.format"),
    "max_tokens": ((), "max_tokens is chat's; use max_output_tokens"),
    "max_completion_tokens": ((), "max_completion_tokens is chat's; use max_output_tokens"),
    "messages": ((), "messages is chat's; use input"),
    "n": ((1,), "a response has one answer; leave n out"),
    "prompt_logprobs": ((), "prompt_logprobs is not supported for responses; use /v1/completions"),
    "return_token_ids": ((False,), "return_token_ids is not supported for responses; use /v1/chat/completions"),
    "structured_outputs": ((), "structured_outputs is chat's; use text.format"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesRequest:
    """Body of `/v1/responses`."""

    options: GenerationOptions
    conversation: Conversation
    """Without what came before `previous_response_id`."""
    input_items: Sequence[Mapping[str, Any]]
    instructions: str | None
    previous_response_id: str | None
    background: bool
    store: bool
    truncates: bool
    """Drop the beginning of a conversation that is too long."""
    echoed: Mapping[str, Any]
    """Fields of the response object that repeat what was asked."""


def parse_responses(body: Mapping[str, Any], defaults: GenerationDefaults, find_item: FindItem) -> ResponsesRequest:
    """Checks and types a body.

    Raises:
        InvalidRequestError: naming the field.
    """
    fields = Fields(body)
    refuse_not_served(fields, NOT_SERVED_YET)
    for name, (neutral, message) in NOT_SERVED.items():
        value = fields.get(name)
        if value is not None and value not in neutral:
            raise fields.refuse(name, message)
    items = parse_input(fields, find_item)
    tools = _tools(fields)
    effort, summary = _reasoning(fields)
    structured, text_echo = _text_format(fields)
    background, store = fields.boolean("background"), fields.boolean("store", default=True)
    if background and not store:
        raise fields.refuse("background", "background needs store: true, or nobody could ask for the answer")
    if background and fields.boolean("stream"):
        raise fields.refuse("background", "background cannot be streamed; leave out stream, and ask for the response")
    truncation = fields.text("truncation") or "disabled"
    if truncation not in ("auto", "disabled"):
        raise fields.fail("truncation", "auto or disabled")
    conversation = Conversation(messages=messages_of(items), tools=tools, reasoning_effort=effort)
    max_tokens, top_logprobs = fields.integer("max_output_tokens", 1, INT64), _logprobs(fields)
    instructions = fields.text("instructions")
    previous_response_id = fields.text("previous_response_id", max_chars=1024)
    echoed: dict[str, Any] = {
        "background": background,
        "instructions": instructions,
        "max_output_tokens": max_tokens,
        "max_tool_calls": fields.integer("max_tool_calls", 1, INT64),
        "metadata": _metadata(fields),
        "parallel_tool_calls": tools.parallel,
        "previous_response_id": previous_response_id,
        "prompt_cache_key": fields.text("prompt_cache_key"),
        "reasoning": {"effort": effort, "summary": summary},
        "safety_identifier": fields.text("safety_identifier"),
        "service_tier": "default",
        "store": store,
        "text": text_echo,
        "tool_choice": "auto" if body.get("tool_choice") is None else body["tool_choice"],
        "tools": body.get("tools") or [],
        "top_logprobs": top_logprobs or 0,
        "truncation": truncation,
        "user": fields.text("user"),
    }
    options = parse_options(fields, defaults, logprobs=top_logprobs, max_tokens=max_tokens)
    return ResponsesRequest(
        options=_formatted(options, structured),
        conversation=conversation,
        input_items=items,
        instructions=instructions,
        previous_response_id=previous_response_id,
        background=background,
        store=store,
        truncates=truncation == "auto",
        echoed={**echoed, "temperature": options.params.temperature, "top_p": options.params.top_p},
    )


def _formatted(options: GenerationOptions, structured: StructuredOutputsParams | None) -> GenerationOptions:
    params = replace(options.params, structured_outputs=structured)
    return replace(options, params=params, format_field=FORMAT_FIELD)


def _tools(fields: Fields) -> Tools:
    """In chat's shapes, read by chat's reader, whose errors are told in this endpoint's words."""
    given = fields.array("tools", max_items=128) or []
    for index, item in enumerate(given):
        if isinstance(item, dict) and item.get("type") not in ("function", None):
            raise fields.refuse(
                "tools", f"tools[{index}] has type {shown(item['type'])}; only function is supported, leave others out"
            )
    nested = [
        {"type": item.get("type"), "function": {key: value for key, value in item.items() if key != "type"}}
        if isinstance(item, dict)
        else item
        for item in given
    ]
    asked = {
        "tools": nested,
        "tool_choice": _nested_choice(fields.get("tool_choice")),
        "parallel_tool_calls": fields.get("parallel_tool_calls"),
    }
    try:
        return parse_tools(Fields(asked))
    except InvalidRequestError as error:
        param = None if error.param is None else error.param.replace(".function", "")
        raise InvalidRequestError(str(error).replace(".function", ""), param=param) from error


def _nested_choice(choice: Any) -> Any:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if choice.get("type") == "allowed_tools":
        tools = choice.get("tools")
        nested = [_nested_choice(item) for item in tools] if isinstance(tools, list) else tools
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": nested}}
    return choice


def _reasoning(fields: Fields) -> tuple[str | None, str | None]:
    """Effort, and what kind of summary is asked for: the thoughts themselves are told, which is more."""
    given = fields.obj("reasoning")
    if given is None:
        return None, None
    effort = given.text("effort")
    if effort is not None and effort not in EFFORTS:
        raise given.fail("effort", "one of " + ", ".join(EFFORTS))
    summary = given.text("summary") or given.text("generate_summary")
    if summary is not None and summary not in SUMMARIES:
        raise given.fail("summary", "one of " + ", ".join(SUMMARIES))
    fields.ignore(given.unread())
    return effort, summary


def _text_format(fields: Fields) -> tuple[StructuredOutputsParams | None, dict[str, Any]]:
    """What the answer must look like, and `text` as the response repeats it."""
    plain = {"format": {"type": "text"}}
    text = fields.obj("text")
    if text is None:
        return None, plain
    text.skip(("verbosity",))
    given = text.obj("format")
    fields.ignore(text.unread())
    if given is None:
        return None, plain
    kind = given.get("type")
    if kind not in FORMATS:
        raise given.fail("type", "one of " + ", ".join(FORMATS))
    schema, name, strict = given.get("schema"), given.text("name", max_chars=64), given.boolean("strict")
    given.text("description")
    if kind != "json_schema" and schema is not None:
        raise given.refuse(
            "schema", f"schema stands beside type {kind}; send type json_schema, or leave the schema out"
        )
    if kind == "text":
        return None, plain
    if kind == "json_object":
        return StructuredOutputsParams(json_object=True), {"format": {"type": "json_object"}}
    if not isinstance(schema, dict | bool):
        raise given.fail("schema", "a JSON Schema, which is an object")
    echo = {"type": "json_schema", "name": name or "answer", "schema": schema, "strict": strict}
    try:
        return StructuredOutputsParams(json=json.dumps(schema)), {"format": echo}
    except RecursionError as error:
        raise given.refuse("schema", "the schema is nested too deeply to be read; flatten it") from error


def _logprobs(fields: Fields) -> int | None:
    """`top_logprobs`, where `include` asks for log-probabilities at all."""
    include = fields.array("include", max_items=32) or []
    for item in include:
        if item not in INCLUDES:
            raise fields.refuse("include", f"include holds {shown(item)}; known are {', '.join(INCLUDES)}")
    count = fields.integer("top_logprobs", *INTEGER_RANGES["logprobs"])
    if LOGPROBS in include:
        return count or 0
    if count:
        raise fields.refuse("top_logprobs", f"top_logprobs needs include: [{LOGPROBS!r}]; send it or leave both out")
    return None


def _metadata(fields: Fields) -> dict[str, str]:
    given = fields.get("metadata")
    if given is None:
        return {}
    if not isinstance(given, dict) or len(given) > MAX_METADATA:
        raise fields.fail("metadata", f"an object of at most {MAX_METADATA} texts")
    for key, value in given.items():
        if len(key) > MAX_KEY_CHARS or not isinstance(value, str) or len(value) > MAX_VALUE_CHARS:
            raise fields.refuse(
                "metadata",
                f"metadata takes keys of at most {MAX_KEY_CHARS} and texts of at most {MAX_VALUE_CHARS} characters",
            )
        checked_text(key, "metadata")
        checked_text(value, "metadata")
    return dict(given)
