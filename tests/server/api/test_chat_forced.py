"""Forced tool calls: a grammar makes them, so they follow their schema on any weights, here random ones."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from octavo_server.api.tools import Tools, forced_calls
from octavo_testing.chat_templates import DEEPSEEK_R1, QWEN3, QWEN25
from octavo_testing.scripted_model import a_body, a_tokenizer, scripted_server
from octavo_testing.scripted_model import joined_choice as joined
from octavo_testing.server import Server, a_chat, real_server

CHAT = "/v1/chat/completions"


def a_function(name: str, **parameters: Any) -> dict[str, Any]:
    function = {"name": name, **({"parameters": parameters} if parameters else {})}
    return {"type": "function", "function": function}


# Short on any weights; references that lead inside of their own document.
PICK = a_function(
    "pick",
    type="object",
    properties={"colour": {"$ref": "#/$defs/colour"}, "count": {"type": "integer", "minimum": 1, "maximum": 99}},
    required=["colour", "count"],
    additionalProperties=False,
    **{"$defs": {"colour": {"enum": ["red", "größer"]}}},
)
FLIP = a_function(
    "flip",
    type="object",
    properties={"on": {"$ref": "#/$defs/colour"}},
    required=["on"],
    additionalProperties=False,
    **{"$defs": {"colour": {"type": "boolean"}}},
)
STOP = a_function("stop")
TOOLS = [PICK, FLIP, STOP]
SCHEMAS = Tools(definitions=tuple(TOOLS), mode="required").schemas


@pytest.fixture
async def server(tiny_model: Path) -> AsyncIterator[Server]:
    async with real_server(tiny_model) as running:
        yield running


def check_calls(choice: dict[str, Any]) -> list[str]:
    """Names of the calls, each of which follows its schema."""
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    names = []
    for call in choice["message"]["tool_calls"]:
        function = call["function"]
        jsonschema.validate(json.loads(function["arguments"]), SCHEMAS[function["name"]])
        names.append(function["name"])
    return names


async def test_a_named_function_is_called_on_any_weights(server: Server) -> None:
    for function in TOOLS:
        chosen = {"type": "function", "function": {"name": function["function"]["name"]}}
        fields = {"tools": TOOLS, "tool_choice": chosen, "temperature": 1.0, "seed": 3, "max_tokens": 200, "n": 4}

        whole = (await server.post(CHAT, a_chat(**fields))).json["choices"]
        events = (await server.post(CHAT, a_chat(**fields, stream=True))).events

        for choice in whole:
            assert check_calls(choice) == [function["function"]["name"]]
            mine = joined(events, choice["index"])["message"]["tool_calls"]
            assert [call["function"] for call in mine] == [call["function"] for call in choice["message"]["tool_calls"]]


async def test_some_function_is_called_where_one_is_required(server: Server) -> None:
    fields = {"tools": TOOLS, "tool_choice": "required", "temperature": 1.5, "n": 8, "max_tokens": 120, "seed": 0}

    choices = (await server.post(CHAT, a_chat(**fields))).json["choices"]

    # Random weights may list calls until the limit.
    ended = [check_calls(choice) for choice in choices if choice["finish_reason"] != "length"]
    assert len({name for names in ended for name in names}) >= 2


async def test_one_call_is_one_call(server: Server) -> None:
    fields = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "temperature": 1.5, "n": 8}

    choices = (await server.post(CHAT, a_chat(**fields, seed=1, max_tokens=200))).json["choices"]

    assert [len(check_calls(choice)) for choice in choices] == [1] * 8


async def test_a_schema_that_cannot_be_forced_names_the_tools(server: Server) -> None:
    bad = a_function("f", type="object", properties={"a": {"type": "string", "pattern": "(?=x)y"}})
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(80):
        deep = {"type": "object", "properties": {"a": deep}}

    for tool in (bad, a_function("f", type="object", properties={"a": {"$ref": "#/$defs/none"}})):
        answer = await server.post(CHAT, a_chat(tools=[tool], tool_choice="required"))
        assert (answer.status, answer.json["error"]["param"]) == (400, "tools"), answer.body
    assert (await server.post(CHAT, a_chat(tools=[a_function("f", **deep)], tool_choice="required"))).status in (
        200,
        400,
    )


def test_references_lead_into_the_function_they_stand_in() -> None:
    schema = forced_calls(Tools(definitions=(PICK, FLIP), mode="required"))

    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema).is_valid
    assert check([{"name": "pick", "arguments": {"colour": "red", "count": 1}}])
    assert check([{"name": "flip", "arguments": {"on": True}}, {"name": "flip", "arguments": {"on": False}}])
    assert not check([{"name": "flip", "arguments": {"on": "red"}}])
    assert not check([])


@pytest.mark.parametrize(
    ("template", "text", "reasoning"),
    [
        (QWEN25, '[{"name": "flip", "arguments": {"on": true}}]', None),
        (QWEN3, '<think>\nHm {\n</think>[{"name": "flip", "arguments": {"on": true}}]', "Hm {"),
        (QWEN3, '[{"name": "flip", "arguments": {"on": true}}]', None),
        (DEEPSEEK_R1, 'Hm</think>[{"name": "flip", "arguments": {"on": true}}]', "Hm"),
    ],
)
async def test_reasoning_may_come_before_the_grammar_binds(
    tmp_path: Path, template: str, text: str, reasoning: str | None
) -> None:
    """The template of R1 knows no tools; a call can be forced all the same."""
    async with scripted_server(a_tokenizer(tmp_path, template, added=("<think>", "</think>"))) as scripted:
        scripted.model.say(text)

        answer = await scripted.chat(tools=TOOLS, tool_choice="required")

    choice = answer["choices"][0]
    assert check_calls(choice) == ["flip"]
    assert choice["message"].get("reasoning") == reasoning


async def test_what_binds_is_the_engines_grammar(tmp_path: Path) -> None:
    """The request that the engine gets: the format of content, or a call in its place, behind the reasoning."""
    folder = a_tokenizer(tmp_path, QWEN3, added=("<think>", "</think>", "<tool_call>"))
    async with scripted_server(folder) as scripted:
        form = {"type": "json_object"}
        scripted.model.say('<think>Hm</think><tool_call>{"name": "stop"}</tool_call>')
        called = await scripted.chat(response_format=form, tools=[STOP])
        scripted.model.say('{"a": 1}')
        answered = await scripted.chat(response_format=form, chat_template_kwargs={"enable_thinking": False})
        scripted.model.say('[{"name": "stop", "arguments": {}}]')
        await scripted.chat(response_format=form, tools=[STOP], tool_choice="required")
        both, bare, forced = (request.params.structured_outputs for request in scripted.model.requests)

    assert check_calls(called["choices"][0]) == ["stop"]
    assert answered["choices"][0]["message"]["content"] == '{"a": 1}'
    assert both is not None
    assert bare is not None
    assert forced is not None
    assert (both.json_object, both.after, both.opening, both.unless) == (True, "</think>", "<think>", "<tool_call>")
    assert (bare.json_object, bare.after, bare.unless) == (True, None, None)
    assert (forced.json_object, forced.after, forced.unless) == (None, "</think>", None)


async def test_a_format_beside_calls_that_look_like_it_is_refused(tmp_path: Path) -> None:
    async with scripted_server(a_tokenizer(tmp_path, QWEN25), tool_call_parser="generic") as scripted:
        body = a_body(response_format={"type": "json_object"}, tools=[PICK])

        answer = await scripted.server.post(CHAT, body)

    assert (answer.status, answer.json["error"]["param"]) == (400, "tools")
