"""Reasoning in chat: apart from the answer, streamed and not, and its tokens counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from octavo_testing.chat_templates import DEEPSEEK_R1, QWEN3, QWEN25
from octavo_testing.scripted_model import Scripted, a_body, a_tokenizer, a_tool, joined_choice, scripted_server

THOUGHT = "<think>\nIs it big? Yes, größer.\n</think>\n\nIt is big."


@pytest.fixture
async def qwen3(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scripted]:
    folder = tmp_path_factory.getbasetemp() / "scripted-qwen3"
    async with scripted_server(a_tokenizer(folder, QWEN3, added=("<think>", "</think>", "<tool_call>"))) as running:
        yield running


def message_of(answer: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = answer["choices"][0]["message"]
    return message


def num_reasoning_tokens(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["completion_tokens_details"]["reasoning_tokens"])


async def test_reasoning_comes_apart_whole_and_streamed(qwen3: Scripted) -> None:
    qwen3.model.say(THOUGHT)

    whole = await qwen3.chat()
    events = await qwen3.events(stream_options={"include_usage": True})

    message = message_of(whole)
    assert (message["reasoning"], message["content"]) == ("Is it big? Yes, größer.", "It is big.")
    assert message["reasoning_content"] == message["reasoning"]
    assert joined_choice(events)["message"] == {
        key: message[key] for key in ("content", "reasoning", "reasoning_content")
    }
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert num_reasoning_tokens(events[-1]) == num_reasoning_tokens(whole) > 0


async def test_reasoning_tokens_are_those_up_to_the_closing_mark(qwen3: Scripted) -> None:
    qwen3.model.say(THOUGHT)
    ids = qwen3.model.token_ids(0)
    closing = ids.index(qwen3.tokenizer.token_id("</think>"))

    answer = await qwen3.chat()

    assert num_reasoning_tokens(answer) == closing + 1
    assert answer["usage"]["completion_tokens"] == len(ids)


@pytest.mark.parametrize(
    ("fields", "text", "reasoning", "content"),
    [
        ({}, "<think>\n\n</think>\n\nYes", None, "Yes"),
        ({}, "Yes", None, "Yes"),
        ({"max_tokens": 4}, THOUGHT, "", None),
        # The prompt has closed the reasoning: what comes is the answer, whatever it looks like.
        ({"chat_template_kwargs": {"enable_thinking": False}}, "<think>Yes", None, "<think>Yes"),
        ({"reasoning_effort": "none"}, "<think>Yes", None, "<think>Yes"),
        ({"reasoning_effort": "high"}, "<think>Hm</think>Yes", "Hm", "Yes"),
        ({"include_reasoning": False}, "<think>Hm</think>Yes", None, "Yes"),
    ],
)
async def test_how_an_answer_begins(
    qwen3: Scripted, fields: dict[str, Any], text: str, reasoning: str | None, content: str | None
) -> None:
    qwen3.model.say(text)

    message = message_of(await qwen3.chat(**fields))

    if reasoning == "":
        assert "Is it big?".startswith(message["reasoning"])
    else:
        assert message.get("reasoning") == reasoning
    assert message["content"] == content


async def test_calls_follow_the_reasoning(qwen3: Scripted) -> None:
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    qwen3.model.say(f"<think>I could {call}</think>\n\n{call}")

    answer = await qwen3.chat(tools=[a_tool()])

    message = message_of(answer)
    assert (message["reasoning"], message["content"], len(message["tool_calls"])) == (f"I could {call}", None, 1)
    assert answer["choices"][0]["finish_reason"] == "tool_calls"


async def test_reasoning_that_is_sent_back_reaches_the_template(qwen3: Scripted) -> None:
    qwen3.model.say(THOUGHT)
    message = message_of(await qwen3.chat())
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}

    await qwen3.chat(
        messages=[
            {"role": "user", "content": "?"},
            {**message, "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "ok"},
        ]
    )

    assert "<think>\nIs it big? Yes, größer.\n</think>" in qwen3.model.prompts[1]


async def test_an_answer_of_nothing_but_reasoning_can_be_sent_back(qwen3: Scripted) -> None:
    qwen3.model.say(THOUGHT)
    message = message_of(await qwen3.chat(max_tokens=6))

    answer = await qwen3.chat(
        messages=[{"role": "user", "content": "?"}, message, {"role": "user", "content": "Well?"}]
    )

    assert message["content"] is None
    assert message_of(answer)["content"] == "It is big."


async def test_a_prompt_that_opens_the_reasoning_is_taken_at_its_word(tmp_path: Path) -> None:
    async with scripted_server(a_tokenizer(tmp_path, DEEPSEEK_R1, special=("<think>", "</think>"))) as r1:
        r1.model.say("Hm\n</think>\n\nYes")

        message = message_of(await r1.chat())
        streamed = joined_choice(await r1.events())["message"]
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Well, Hm</think>"}]
        r1.model.say(" yes")
        continued = message_of(await r1.chat(messages=messages, continue_final_message=True))

    assert (message["reasoning"], message["content"]) == ("Hm", "Yes")
    assert (streamed["reasoning"], streamed["content"]) == ("Hm", "Yes")
    assert (continued.get("reasoning"), continued["content"]) == (None, " yes")


async def test_r1_thinks_though_its_prompt_does_not_say_so(tmp_path: Path) -> None:
    async with scripted_server(a_tokenizer(tmp_path, QWEN25), reasoning_parser="deepseek_r1") as scripted:
        scripted.model.say("Hm</think>Yes")

        answer = await scripted.chat()

    assert (message_of(answer)["reasoning"], message_of(answer)["content"]) == ("Hm", "Yes")


async def test_without_a_parser_reasoning_stays_in_the_answer(tmp_path: Path) -> None:
    async with scripted_server(a_tokenizer(tmp_path, QWEN3), reasoning_parser="none") as scripted:
        scripted.model.say(THOUGHT)

        answer = await scripted.chat()

    assert message_of(answer)["content"] == THOUGHT
    assert num_reasoning_tokens(answer) == 0


async def test_a_hint_that_the_template_does_not_read_is_named(tmp_path: Path) -> None:
    async with scripted_server(a_tokenizer(tmp_path / "a", QWEN25)) as scripted:
        hint = await scripted.server.post("/v1/chat/completions", a_body(reasoning_effort="low"))
        silent = await scripted.server.post("/v1/chat/completions", a_body(reasoning_effort="none"))
    async with scripted_server(a_tokenizer(tmp_path / "b", DEEPSEEK_R1)) as thinking:
        refused = await thinking.server.post("/v1/chat/completions", a_body(reasoning_effort="none"))

    assert hint.headers["X-Octavo-Ignored"] == "reasoning_effort"
    assert "X-Octavo-Ignored" not in silent.headers
    assert (refused.status, refused.json["error"]["param"]) == (400, "reasoning_effort")


async def test_usage_so_far_comes_with_every_chunk_that_asks_for_it(qwen3: Scripted) -> None:
    qwen3.model.say(THOUGHT)

    events = await qwen3.events(stream_options={"include_usage": True, "continuous_usage_stats": True})

    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts[0] == 0
    assert len(counts) > 2
    assert counts == sorted(counts)
    assert counts[-1] == len(qwen3.model.token_ids(0))


async def test_echo_puts_the_last_message_in_front(qwen3: Scripted) -> None:
    qwen3.model.say(" and more")
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "So"}]
    fields = {"messages": messages, "echo": True, "continue_final_message": True}

    assert message_of(await qwen3.chat(**fields))["content"] == "So and more"
    assert joined_choice(await qwen3.events(**fields))["message"]["content"] == "So and more"
    assert message_of(await qwen3.chat(echo=True))["content"] == " and more"
