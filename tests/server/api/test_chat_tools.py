"""Tools in chat: what a model writes in its own format reaches clients as calls, streamed and not."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from octavo_testing.chat_templates import DEEPSEEK_R1, LLAMA31, MISTRAL, QWEN25
from octavo_testing.scripted_model import Scripted, a_body, a_tokenizer, a_tool, joined_choice, scripted_server
from octavo_testing.server import CHAT_TEMPLATE, NAME

WEATHER = a_tool("get_weather", city={"type": "string"}, days={"type": "integer"})
SEARCH = a_tool("search", q={"type": "string"})
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln </tool_call>", "days": 3}}\n</tool_call>'
SECOND = '<tool_call>\n{"name": "search", "arguments": {"q": "a \\"b\\""}}\n</tool_call>'
COLOGNE = ("get_weather", {"city": "Köln </tool_call>", "days": 3})


@pytest.fixture
async def qwen(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scripted]:
    # As in Qwen's tokenizer: the tags are tokens, but not special.
    folder = tmp_path_factory.getbasetemp() / "scripted-qwen"
    async with scripted_server(a_tokenizer(folder, QWEN25, added=("<tool_call>", "</tool_call>"))) as running:
        yield running


def calls_of(choice: dict[str, Any]) -> list[tuple[str, Any]]:
    """Name and parsed arguments of each call."""
    calls = choice["message"].get("tool_calls", [])
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


def without_ids(choice: dict[str, Any]) -> dict[str, Any]:
    """What must be equal streamed and not; ids are new each time."""
    message = {name: value for name, value in choice["message"].items() if name not in ("role", "refusal")}
    calls = [{"type": call["type"], "function": call["function"]} for call in message.get("tool_calls", [])]
    kept = {name: choice[name] for name in ("finish_reason", "stop_reason")}
    return {**kept, **message, **({"tool_calls": calls} if calls else {})}


@pytest.mark.parametrize(
    ("text", "content", "calls", "reason"),
    [
        (CALL, None, [COLOGNE], "tool_calls"),
        (f"Let me see.\n{CALL}\n{SECOND}", "Let me see.", [COLOGNE, ("search", {"q": 'a "b"'})], "tool_calls"),
        ("No tool is needed < here.", "No tool is needed < here.", [], "stop"),
        ("<tool_call>broken</tool_call>", "<tool_call>broken</tool_call>", [], "stop"),
    ],
)
async def test_calls_come_whole_and_streamed(
    qwen: Scripted, text: str, content: str | None, calls: list[tuple[str, Any]], reason: str
) -> None:
    qwen.model.say(text)

    whole = (await qwen.chat(tools=[WEATHER, SEARCH]))["choices"][0]
    streamed = joined_choice(await qwen.events(tools=[WEATHER, SEARCH]))

    assert (whole["message"]["content"], calls_of(whole), whole["finish_reason"]) == (content, calls, reason)
    assert without_ids(streamed) == without_ids(whole)
    assert all(re.fullmatch(r"call_[0-9a-f]{24}", call["id"]) for call in whole["message"].get("tool_calls", []))


async def test_the_template_gets_the_tools(qwen: Scripted) -> None:
    await qwen.chat(tools=[WEATHER])
    await qwen.chat(tools=[WEATHER], tool_choice="none")

    with_tools, without = qwen.model.prompts
    assert json.dumps(WEATHER) in with_tools
    assert "get_weather" not in without


async def test_calls_are_text_where_the_model_is_not_to_call(qwen: Scripted) -> None:
    qwen.model.say(CALL)

    for fields in ({}, {"tools": []}, {"tools": [WEATHER], "tool_choice": "none"}):
        choice = (await qwen.chat(**fields))["choices"][0]

        assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
        assert "tool_calls" not in choice["message"]


async def test_each_choice_has_calls_of_its_own(qwen: Scripted) -> None:
    qwen.model.say(CALL, "Hello", SECOND)

    whole = (await qwen.chat(tools=[WEATHER, SEARCH], n=3))["choices"]
    events = await qwen.events(tools=[WEATHER, SEARCH], n=3)

    assert [calls_of(choice) for choice in whole] == [[COLOGNE], [], [("search", {"q": 'a "b"'})]]
    assert [choice["finish_reason"] for choice in whole] == ["tool_calls", "stop", "tool_calls"]
    assert [without_ids(joined_choice(events, index)) for index in range(3)] == [without_ids(item) for item in whole]
    ids = [call["id"] for choice in whole for call in choice["message"].get("tool_calls", [])]
    assert len(set(ids)) == 2


async def test_one_call_where_several_are_not_wanted(qwen: Scripted) -> None:
    qwen.model.say(CALL + SECOND)

    choice = (await qwen.chat(tools=[WEATHER, SEARCH], parallel_tool_calls=False))["choices"][0]

    assert calls_of(choice) == [COLOGNE]


async def test_a_call_that_is_cut_off_says_so(qwen: Scripted) -> None:
    qwen.model.say(CALL)
    num_tokens = len(qwen.model.token_ids(0))

    choice = (await qwen.chat(tools=[WEATHER], max_tokens=num_tokens // 2))["choices"][0]

    function = choice["message"]["tool_calls"][0]["function"]
    assert choice["finish_reason"] == "length"
    assert function["name"] == "get_weather"
    assert json.dumps(COLOGNE[1], ensure_ascii=False).startswith(function["arguments"])


@pytest.mark.parametrize(("stop", "reason"), [("city", "stop"), ("\n</tool_call>", "tool_calls")])
async def test_a_stop_string_of_the_client_may_cut_a_call_off(qwen: Scripted, stop: str, reason: str) -> None:
    """Who reads `tool_calls` parses the arguments, so it is said of whole ones alone."""
    qwen.model.say(CALL)

    whole = (await qwen.chat(tools=[WEATHER], stop=stop))["choices"][0]
    streamed = joined_choice(await qwen.events(tools=[WEATHER], stop=stop))

    assert (whole["finish_reason"], whole["stop_reason"]) == (reason, stop)
    assert without_ids(streamed) == without_ids(whole)


async def test_logprobs_list_the_tokens_that_the_calls_are_made_of(qwen: Scripted) -> None:
    qwen.model.say(f"See: {CALL}")

    whole = (await qwen.chat(tools=[WEATHER], logprobs=True))["choices"][0]
    events = await qwen.events(tools=[WEATHER], logprobs=True)

    entries = whole["logprobs"]["content"]
    streamed = [item for e in events for c in e["choices"] if c["logprobs"] for item in c["logprobs"]["content"]]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == f"See: {CALL}"
    assert streamed == entries


async def test_allowed_tools_are_those_that_the_model_sees(qwen: Scripted) -> None:
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "search"}}]}

    await qwen.chat(tools=[WEATHER, SEARCH], tool_choice={"type": "allowed_tools", "allowed_tools": allowed})

    assert "search" in qwen.model.prompts[0]
    assert "get_weather" not in qwen.model.prompts[0]


async def test_calls_and_results_are_sent_back(qwen: Scripted) -> None:
    """The answer's own message is taken as it is, arguments as text or as an object."""
    qwen.model.say(CALL)
    message = (await qwen.chat(tools=[WEATHER]))["choices"][0]["message"]
    call = message["tool_calls"][0]
    result = {"role": "tool", "tool_call_id": call["id"], "content": [{"type": "text", "text": "12 °C"}]}
    as_object = {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}

    for sent in (message, {"role": "assistant", "tool_calls": [as_object]}):
        await qwen.chat(tools=[WEATHER], messages=[{"role": "user", "content": "?"}, sent, result])

    first, second = qwen.model.prompts[1:]
    expected = f"<|im_start|>assistant\n{CALL}<|im_end|>\n<|im_start|>user\n<tool_response>\n12 °C\n</tool_response>"
    assert expected in first
    assert second == first


FORMATS = [
    (
        MISTRAL,
        ("[TOOL_CALLS]", "[ARGS]"),
        '[TOOL_CALLS] [{"name": "search", "arguments": {"q": "x"}}]',
        r"[0-9a-z]{9}",
    ),
    (MISTRAL, ("[TOOL_CALLS]", "[ARGS]"), '[TOOL_CALLS]search[ARGS]{"q": "x"}', r"[0-9a-z]{9}"),
    (
        LLAMA31,
        ("<|python_tag|>", "<|other|>"),
        '<|other|><|python_tag|>{"name": "search", "parameters": {"q": "x"}}',
        r"call_\w+",
    ),
]


@pytest.mark.parametrize(("template", "special", "text", "id_pattern"), FORMATS)
async def test_marks_that_are_special_tokens_reach_the_parser_and_no_others_leak(
    tmp_path: Path, template: str, special: tuple[str, ...], text: str, id_pattern: str
) -> None:
    async with scripted_server(a_tokenizer(tmp_path, template, special=special)) as scripted:
        scripted.model.say(text)

        choice = (await scripted.chat(tools=[SEARCH]))["choices"][0]
        plain = (await scripted.chat())["choices"][0]["message"]["content"]

    assert calls_of(choice) == [("search", {"q": "x"})]
    assert choice["message"]["content"] is None
    assert re.fullmatch(id_pattern, choice["message"]["tool_calls"][0]["id"])
    assert not any(mark in plain for mark in special)


async def test_tools_that_cannot_be_called_are_refused_with_the_remedy(tmp_path: Path) -> None:
    unknown = CHAT_TEMPLATE + "{{ tools }}"
    for name, template, config, words in (
        ("a", DEEPSEEK_R1, {}, "template does not know tools"),
        ("b", unknown, {}, "--tool-call-parser"),
        ("c", QWEN25, {"tool_call_parser": "none"}, "--tool-call-parser"),
    ):
        async with scripted_server(a_tokenizer(tmp_path / name, template), **config) as scripted:
            answer = await scripted.server.post("/v1/chat/completions", a_body(tools=[WEATHER]))

            assert (answer.status, answer.json["error"]["param"]) == (400, "tools")
            assert words in answer.json["error"]["message"]
            assert (await scripted.chat(tools=[WEATHER], tool_choice="none"))["choices"]


async def test_a_flag_names_the_parser_that_the_template_does_not(tmp_path: Path) -> None:
    folder = a_tokenizer(tmp_path, CHAT_TEMPLATE + "{{ tools }}")
    async with scripted_server(folder, tool_call_parser="generic") as scripted:
        scripted.model.say('```json\n{"name": "search", "arguments": {"q": "x"}}\n```')

        choice = (await scripted.chat(tools=[SEARCH]))["choices"][0]

    assert calls_of(choice) == [("search", {"q": "x"})]


async def test_openais_client_accumulates_a_streamed_call(qwen: Scripted) -> None:
    qwen.model.say(f"Let me see.\n{CALL}\n{SECOND}")
    arguments: dict[str, Any] = {
        "model": NAME,
        "messages": [{"role": "user", "content": "Weather?"}],
        "tools": [WEATHER, SEARCH],
    }
    async with openai.AsyncOpenAI(base_url=qwen.server.url + "/v1", api_key="none", max_retries=0) as client:
        whole = await client.chat.completions.create(**arguments)
        async with client.chat.completions.stream(**arguments) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_completion()

    message = final.choices[0].message
    assert message.content == whole.choices[0].message.content == "Let me see."
    assert [call.function.arguments for call in message.tool_calls or []] == [
        call.function.arguments for call in whole.choices[0].message.tool_calls or []
    ]
    assert final.choices[0].finish_reason == "tool_calls"
    assert kinds.count("tool_calls.function.arguments.done") == 2
