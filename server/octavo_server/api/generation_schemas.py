"""What `/openapi.json` says of the bodies and answers of chat and completions; ranges are the parsers' own.

A field that a parser reads and this page does not name fails a test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo_server.api.chat_request import MAX_DOCUMENTS
from octavo_server.api.conversation import EFFORTS
from octavo_server.api.endpoint import EVENTS, JSON, Answer
from octavo_server.api.json_schema import (
    MODEL,
    TOKEN_ID,
    any_of,
    array,
    boolean,
    integer,
    number,
    obj,
    one_of,
    optional,
    optionals,
    record,
    text,
)
from octavo_server.api.messages import MAX_CALLS, MAX_MESSAGES, MAX_PARTS
from octavo_server.api.schemas import MAX_PROMPTS, NOT_SERVED_YET, WITHOUT_MEANING
from octavo_server.api.structured_fields import STRUCTURED_PROPERTIES
from octavo_server.api.tools import MAX_TOOLS, NAME_PATTERN
from octavo_server.engine.admission import (
    ABOVE_ZERO,
    INT64,
    INTEGER_RANGES,
    LOGIT_BIAS_LIMIT,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    RANGES,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo_server.api.endpoint import Schema

_COUNT = integer(0)
USAGE = record(
    {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "total_tokens": _COUNT,
        "prompt_tokens_details": record({"cached_tokens": _COUNT}),
        "completion_tokens_details": record({"reasoning_tokens": _COUNT}),
    }
)
_FINISH_REASON = one_of("stop", "length", "tool_calls")
_STOP_REASON = {"type": ["string", "integer", "null"]}
_PROMPT_LOGPROBS = array({"type": ["object", "null"]})
PRIORITY = integer(
    -(2**31), 2**31 - 1, description="Lower runs earlier; other than 0 needs --scheduling-policy priority."
)
CACHE_SALT = text(maxLength=1024, description="Only requests with an equal salt share cached prefixes.")


def _ranged(name: str) -> Schema:
    """A field of the sampling parameters, with the range that admission checks."""
    if name in INTEGER_RANGES:
        return integer(*INTEGER_RANGES[name])
    low, high = RANGES[name]
    return {"type": "number", "exclusiveMinimum": low, "maximum": high} if name in ABOVE_ZERO else number(low, high)


def not_served(names: Mapping[str, tuple[Any, ...]]) -> dict[str, Schema]:
    """Known fields that take only the values that change nothing."""
    return {name: one_of(*neutral, None) for name, neutral in names.items()}


_STOP_STRING = text(minLength=1, maxLength=MAX_STOP_CHARS)
SAMPLING = {
    name: _ranged(name)
    for name in (
        "n",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "seed",
        "min_tokens",
        "prompt_logprobs",
    )
} | {
    "stop": any_of(_STOP_STRING, array(_STOP_STRING, high=MAX_STOP_STRINGS)),
    "stop_token_ids": array(TOKEN_ID, high=1024),
    "include_stop_str_in_output": boolean(),
    "ignore_eos": boolean(),
    "skip_special_tokens": boolean(),
    "logit_bias": {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": number(-LOGIT_BIAS_LIMIT, LOGIT_BIAS_LIMIT),
        "maxProperties": 1024,
    },
}
_COMMON = optionals(
    {
        **SAMPLING,
        "stream": boolean(),
        "stream_options": obj(
            optionals({"include_usage": boolean(), "continuous_usage_stats": boolean(), "include_obfuscation": {}})
        ),
        "priority": PRIORITY,
        "cache_salt": CACHE_SALT,
        "return_token_ids": boolean(),
    }
) | {**STRUCTURED_PROPERTIES, **{name: {} for name in WITHOUT_MEANING}, **not_served(NOT_SERVED_YET)}

_TEXT_PART = obj({"type": one_of("text"), "text": text()}, required=("type", "text"))
_REFUSAL_PART = obj({"type": one_of("refusal"), "refusal": text()}, required=("type", "refusal"))
_PART = any_of(_TEXT_PART, _REFUSAL_PART)
_CONTENT = any_of(text(), array(_PART, 1, MAX_PARTS))
_NAME = optional(text(maxLength=256))
_CALL = obj(
    {
        "id": optional(text()),
        "type": one_of("function", None),
        "function": obj(
            {"name": text(), "arguments": {"type": ["string", "object", "null"]}},
            required=("name",),
        ),
    },
    required=("function",),
)
_ASSISTANT = {
    "name": _NAME,
    **optionals({name: text() for name in ("refusal", "reasoning", "reasoning_content", "thinking")}),
}
MESSAGE = any_of(
    obj(
        {"role": one_of("system", "developer", "user"), "content": _CONTENT, "name": _NAME},
        required=("role", "content"),
    ),
    obj(
        {"role": one_of("tool"), "content": _CONTENT, "tool_call_id": text(), "name": _NAME},
        required=("role", "content", "tool_call_id"),
    ),
    obj({"role": one_of("assistant"), "content": _CONTENT, **_ASSISTANT}, required=("role", "content")),
    obj(
        {
            "role": one_of("assistant"),
            "content": optional(any_of(text(), array(_PART, 0, MAX_PARTS))),
            **_ASSISTANT,
            "tool_calls": array(_CALL, 1, MAX_CALLS),
        },
        required=("role", "tool_calls"),
    ),
)
MESSAGES = array(MESSAGE, 1, MAX_MESSAGES)


def prompts_of(most: int) -> Schema:
    """One prompt or up to `most`, as text or as token ids."""
    one = text(minLength=1)
    return any_of(one, array(one, 1, most), array(TOKEN_ID, 1), array(array(TOKEN_ID, 1), 1, most))


_FUNCTION_NAME = text(pattern=NAME_PATTERN)
_TOOL = obj(
    {
        "type": one_of("function"),
        "function": obj(
            {
                "name": _FUNCTION_NAME,
                **optionals(
                    {"description": text(), "parameters": obj({"type": one_of("object")}), "strict": boolean()}
                ),
            },
            required=("name",),
        ),
    },
    required=("type", "function"),
)
_CHOSEN = obj(
    {"type": one_of("function"), "function": obj({"name": _FUNCTION_NAME}, required=("name",))},
    required=("type", "function"),
)
_ALLOWED = obj(
    {
        "type": one_of("allowed_tools"),
        "allowed_tools": obj(
            {"mode": one_of("auto", "required"), "tools": array(_CHOSEN, 1, MAX_TOOLS)}, required=("mode", "tools")
        ),
    },
    required=("type", "allowed_tools"),
)
CHAT_RENDERING = {
    "add_generation_prompt": boolean(),
    "continue_final_message": boolean(),
    "chat_template_kwargs": obj({}),
}
_CONVERSATION = {
    **CHAT_RENDERING,
    "tools": array(_TOOL, high=MAX_TOOLS),
    "tool_choice": any_of(one_of("none", "auto", "required"), _CHOSEN, _ALLOWED),
    "parallel_tool_calls": boolean(),
    "documents": array(obj({}), high=MAX_DOCUMENTS),
    "reasoning_effort": one_of(*EFFORTS),
    "include_reasoning": boolean(),
    "add_special_tokens": boolean(),
    "echo": boolean(),
}
_OLD_WAYS = {
    "functions": one_of([], None),
    "function_call": one_of("none", "auto", None),
    "chat_template": {"type": "null"},
}
CHAT_BODY = obj(
    {
        "model": MODEL,
        "messages": MESSAGES,
        **_COMMON,
        **optionals(
            {
                **_CONVERSATION,
                "max_tokens": integer(1, INT64),
                "max_completion_tokens": integer(1, INT64),
                "logprobs": boolean(),
                "top_logprobs": integer(*INTEGER_RANGES["logprobs"]),
            }
        ),
        **_OLD_WAYS,
    },
    required=("model", "messages"),
)
COMPLETION_BODY = obj(
    {
        "model": MODEL,
        "prompt": prompts_of(MAX_PROMPTS),
        **_COMMON,
        **optionals(
            {
                "max_tokens": integer(*INTEGER_RANGES["max_tokens"]),
                "logprobs": integer(*INTEGER_RANGES["logprobs"]),
                "echo": boolean(),
                "add_special_tokens": boolean(),
            }
        ),
    },
    required=("model", "prompt"),
)

CHAT_EXAMPLE = {
    "model": "MODEL",
    "messages": [{"role": "user", "content": "What is a pod?"}],
    "max_tokens": 16,
    "temperature": 0,
}
COMPLETION_EXAMPLE = {"model": "MODEL", "prompt": "A pod is", "max_tokens": 16, "temperature": 0}

_TOKEN_LOGPROB = {"token": text(), "logprob": number(), "bytes": optional(array(integer(0, 255)))}
_CHAT_LOGPROBS = record(
    {"content": optional(array(record({**_TOKEN_LOGPROB, "top_logprobs": array(record(_TOKEN_LOGPROB))})))}
)
_COMPLETION_LOGPROBS = record(
    {
        "tokens": array(text()),
        "token_logprobs": array(optional(number())),
        "top_logprobs": optional(array({"type": ["object", "null"]})),
        "text_offset": array(_COUNT),
    }
)


def _choice(own: Mapping[str, Schema], logprobs: Schema, **beside: Schema) -> Schema:
    named = {
        "index": _COUNT,
        **own,
        "logprobs": optional(logprobs),
        "finish_reason": _FINISH_REASON,
        "stop_reason": _STOP_REASON,
    }
    return obj({**named, "token_ids": array(TOKEN_ID), **beside}, required=list(named))


_ABOUT_PROMPT = {"prompt_token_ids": array(TOKEN_ID), "prompt_logprobs": _PROMPT_LOGPROBS}


def _answers(kind: str, choice: Schema, **beside: Schema) -> Mapping[int, Answer]:
    named = {
        "id": text(),
        "object": one_of(kind),
        "created": integer(0),
        "model": MODEL,
        "choices": array(choice),
        "usage": USAGE,
    }
    whole = obj({**named, **beside}, required=list(named))
    # Of no type: some readers take a schema here for the whole text, others for each event.
    events = {"description": "Server-sent events, one chunk each, then [DONE]; with `stream: true`."}
    return {200: Answer(description="The answer, whole or streamed.", content={JSON: whole, EVENTS: events})}


_ANSWER_CALL = record(
    {"id": text(), "type": one_of("function"), "function": record({"name": text(), "arguments": text()})}
)
_ANSWER_MESSAGE = obj(
    {
        "role": one_of("assistant"),
        "content": optional(text()),
        "refusal": {"type": "null"},
        "reasoning": text(),
        "reasoning_content": text(description="The same, under its older name."),
        "tool_calls": array(_ANSWER_CALL, 1),
    },
    required=("role", "content"),
)
CHAT_ANSWERS = _answers("chat.completion", _choice({"message": _ANSWER_MESSAGE}, _CHAT_LOGPROBS), **_ABOUT_PROMPT)
COMPLETION_ANSWERS = _answers("text_completion", _choice({"text": text()}, _COMPLETION_LOGPROBS, **_ABOUT_PROMPT))
