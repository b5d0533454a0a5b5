"""What `/openapi.json` says of `/v1/responses`; ranges are the parser's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo_server.api.conversation import EFFORTS
from octavo_server.api.endpoint import EVENTS, JSON, Answer
from octavo_server.api.generation_schemas import CACHE_SALT, PRIORITY, SAMPLING, not_served
from octavo_server.api.json_schema import (
    MODEL,
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
from octavo_server.api.messages import MAX_MESSAGES, MAX_PARTS
from octavo_server.api.responses_request import (
    INCLUDES,
    MAX_KEY_CHARS,
    MAX_METADATA,
    MAX_VALUE_CHARS,
    NOT_SERVED,
    SUMMARIES,
)
from octavo_server.api.schemas import NOT_SERVED_YET, WITHOUT_MEANING
from octavo_server.api.structured_fields import FORMATS, STRUCTURED_PROPERTIES
from octavo_server.api.tools import MAX_TOOLS, NAME_PATTERN
from octavo_server.engine.admission import INT64, INTEGER_RANGES

if TYPE_CHECKING:
    from octavo_server.api.endpoint import Schema

_COUNT = integer(0)
_TEXT_PART = obj({"type": one_of("input_text", "output_text", "text"), "text": text()}, required=("type", "text"))
_CONTENT = any_of(text(), array(_TEXT_PART, high=MAX_PARTS))
_ITEM = any_of(
    obj(
        {
            "type": one_of("message"),
            "role": one_of("user", "system", "developer", "assistant"),
            "content": _CONTENT,
        },
        required=("role", "content"),
    ),
    obj(
        {"type": one_of("function_call"), "call_id": text(), "name": text(), "arguments": text()},
        required=("type", "call_id", "name", "arguments"),
    ),
    obj(
        {"type": one_of("function_call_output"), "call_id": text(), "output": _CONTENT},
        required=("type", "call_id", "output"),
    ),
    obj(
        {
            "type": one_of("reasoning"),
            "summary": array(obj({"type": one_of("summary_text"), "text": text()}, required=("type", "text"))),
        },
        required=("type", "summary"),
    ),
    obj({"type": one_of("item_reference"), "id": text()}, required=("type", "id")),
)
_NAME = text(pattern=NAME_PATTERN)
_TOOL = obj(
    {
        "type": one_of("function"),
        "name": _NAME,
        "description": optional(text()),
        "strict": optional(boolean()),
        "parameters": optional(obj({"type": one_of("object"), "properties": {"type": "object"}})),
    },
    required=("type", "name"),
)
_CHOICE = any_of(
    one_of("none", "auto", "required", None),
    obj({"type": one_of("function"), "name": _NAME}, required=("type", "name")),
    obj(
        {
            "type": one_of("allowed_tools"),
            "mode": one_of("auto", "required"),
            "tools": array(obj({"type": one_of("function"), "name": _NAME}, required=("type", "name")), 1, MAX_TOOLS),
        },
        required=("type", "mode", "tools"),
    ),
)
_FORMAT = obj(
    {
        "type": one_of(*FORMATS),
        "name": optional(text(maxLength=64)),
        "schema": {"type": ["object", "boolean", "null"]},
        "strict": optional(boolean()),
        "description": optional(text()),
    },
    required=("type",),
)
_EXTENSIONS = ("allowed_token_ids", "bad_words", "truncate_prompt_tokens")
RESPONSE_BODY = obj(
    {
        "model": MODEL,
        "input": any_of(text(), array(_ITEM, 1, MAX_MESSAGES)),
        **optionals(
            {
                "instructions": text(),
                "previous_response_id": text(maxLength=1024),
                "max_output_tokens": integer(1, INT64),
                "max_tool_calls": integer(1, INT64),
                "include": array(one_of(*INCLUDES), high=32),
                "top_logprobs": integer(*INTEGER_RANGES["logprobs"]),
                "reasoning": obj(
                    optionals(
                        {
                            "effort": one_of(*EFFORTS),
                            "summary": one_of(*SUMMARIES),
                            "generate_summary": one_of(*SUMMARIES),
                        }
                    )
                ),
                "text": obj({"format": optional(_FORMAT), "verbosity": {}}),
                "tools": array(_TOOL, high=MAX_TOOLS),
                "parallel_tool_calls": boolean(),
                "truncation": one_of("auto", "disabled"),
                "background": boolean(),
                "store": boolean(),
                "metadata": {
                    "type": "object",
                    "maxProperties": MAX_METADATA,
                    "propertyNames": {"maxLength": MAX_KEY_CHARS},
                    "additionalProperties": text(maxLength=MAX_VALUE_CHARS),
                },
                "stream": boolean(),
                "stream_options": obj({"include_obfuscation": {}}),
                "priority": PRIORITY,
                "cache_salt": CACHE_SALT,
                "prompt_cache_key": text(),
                "safety_identifier": text(),
                "user": text(),
            }
        ),
        "tool_choice": _CHOICE,
        **optionals({name: schema for name, schema in SAMPLING.items() if name not in NOT_SERVED}),
        **{name: STRUCTURED_PROPERTIES[name] for name in _EXTENSIONS},
        **not_served({name: neutral for name, (neutral, _) in NOT_SERVED.items()}),
        **not_served(NOT_SERVED_YET),
        **{name: {} for name in WITHOUT_MEANING if name not in ("store", "metadata", "user")},
    },
    required=("model", "input"),
)
RESPONSE_EXAMPLES: tuple[Schema, ...] = (
    {"model": "MODEL", "input": "What is a pod?", "max_output_tokens": 16, "temperature": 0},
    {
        "model": "MODEL",
        "instructions": "Be brief.",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "What is a pod?"}]}],
        "max_output_tokens": 16,
        "temperature": 0,
        "store": False,
    },
)

_OUTPUT_ITEM = obj(
    {
        "id": text(),
        "type": one_of("message", "reasoning", "function_call"),
        "status": one_of("in_progress", "completed", "incomplete"),
    },
    required=("id", "type", "status"),
)
_USAGE = record(
    {
        "input_tokens": _COUNT,
        "input_tokens_details": record({"cached_tokens": _COUNT, "cache_write_tokens": _COUNT}),
        "output_tokens": _COUNT,
        "output_tokens_details": record({"reasoning_tokens": _COUNT}),
        "total_tokens": _COUNT,
    }
)
RESPONSE = record(
    {
        "id": text(),
        "object": one_of("response"),
        "created_at": _COUNT,
        "status": one_of("queued", "in_progress", "completed", "incomplete", "failed", "cancelled"),
        "error": optional(record({"code": text(), "message": text()})),
        "incomplete_details": optional(record({"reason": text()})),
        "model": text(),
        "output": array(_OUTPUT_ITEM),
        "parallel_tool_calls": boolean(),
        "previous_response_id": optional(text()),
        "temperature": number(),
        "tools": array({"type": "object"}),
        "usage": optional(_USAGE),
    }
)
RESPONSE_ANSWERS = {
    200: Answer(
        description="The answer; events where stream is true",
        # Of no type: some readers take a schema here for the whole text, others for each event.
        content={JSON: RESPONSE, EVENTS: {"description": "Named events; with `stream: true`."}},
    )
}
DELETED = record({"id": text(), "object": one_of("response"), "deleted": one_of(True)})
ITEM_PARAMETERS: tuple[Schema, ...] = (
    {"name": "limit", "in": "query", "schema": integer(1, 100)},
    {"name": "order", "in": "query", "schema": one_of("asc", "desc")},
    {"name": "after", "in": "query", "schema": text(), "description": "The id of the last item of the page before."},
)
INPUT_ITEMS = record(
    {
        "object": one_of("list"),
        "data": array({"type": "object"}),
        "first_id": optional(text()),
        "last_id": optional(text()),
        "has_more": boolean(),
    }
)
