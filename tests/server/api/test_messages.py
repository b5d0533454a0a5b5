"""Messages as templates get them; the oracle is transformers' rendering of what OpenAI's shapes mean."""

from __future__ import annotations

import json
from typing import Any

import pytest

from octavo_server.api.fields import Fields
from octavo_server.api.messages import Message, parse_messages
from octavo_server.errors import InvalidRequestError
from octavo_server.tokenizer.call_arguments import CallArguments, parse_call_arguments
from octavo_server.tokenizer.chat_template import ChatTemplate
from octavo_testing.chat_templates import DEEPSEEK_R1, LLAMA31, MISTRAL, QWEN3, QWEN25
from octavo_testing.scripted_model import a_tool

TOOLS = [a_tool("get_weather"), a_tool("größe", q={"type": "array", "items": {"type": "number"}})]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
ARGUMENTS = {"city": 'Köln "am" Rhein\n', "deep": [{"a": None}, 1.5]}


def parsed(*messages: Any) -> tuple[Message, ...]:
    return parse_messages(Fields({"messages": list(messages)}))


def a_call(arguments: Any, identity: str = "abcdef123") -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": "get_weather", "arguments": arguments}}


def a_round(arguments: Any) -> list[dict[str, Any]]:
    """A question, a call, its result, the answer, and a further question."""
    return [
        {"role": "system", "content": "Be <kind>."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [a_call(arguments)]},
        {"role": "tool", "tool_call_id": "abcdef123", "content": "12 °C"},
        {"role": "assistant", "content": "It is cold."},
        {"role": "user", "content": "And tomorrow?"},
    ]


def theirs(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=True, **SPECIAL, **options
    )
    return str(rendered[0])


@pytest.mark.parametrize(
    ("source", "as_text"),
    [(QWEN25, False), (QWEN3, False), (LLAMA31, False), (MISTRAL, False), (DEEPSEEK_R1, True)],
    ids=["qwen2.5", "qwen3", "llama3.1", "mistral", "deepseek-r1"],
)
@pytest.mark.parametrize("until", [3, 4, 6])
def test_a_round_of_tools_renders_as_in_transformers(source: str, as_text: bool, until: int) -> None:
    """OpenAI's clients send arguments as text; most templates want an object, DeepSeek's want text."""
    text = json.dumps(ARGUMENTS, ensure_ascii=False)
    messages = parsed(*a_round(text)[:until])

    rendered = ChatTemplate({"default": source}, SPECIAL, origin="test").render(messages, tools=TOOLS)

    assert rendered == theirs(source, a_round(text if as_text else ARGUMENTS)[:until], tools=TOOLS)
    assert "Köln" in rendered


def test_arguments_as_an_object_render_as_their_text_does() -> None:
    template = ChatTemplate({"default": QWEN25 + DEEPSEEK_R1}, SPECIAL, origin="test")

    renderings = [template.render(parsed(*a_round(given)), tools=TOOLS) for given in (ARGUMENTS, json.dumps(ARGUMENTS))]

    assert renderings[0].replace("Köln", "K\\u00f6ln") == renderings[1].replace("Köln", "K\\u00f6ln")


def test_arguments_that_are_no_object_stay_the_text_that_the_model_wrote() -> None:
    """An agent that sends a broken call back with its error must not be refused for it."""
    for text in ("{broken", "[1]", '"x"', "null", "[" * 100_000, '{"a": "\\ud800"}'):
        assert parse_call_arguments(text) == text
    assert parse_call_arguments(" ") == {}
    assert parse_call_arguments('{"a": 1}') == {"a": 1}


def test_arguments_are_an_object_and_their_text() -> None:
    arguments = CallArguments({"a": "ö"}, '{"a":"ö"}')

    assert ("x" + arguments, arguments + "x", str(arguments)) == ('x{"a":"ö"}', '{"a":"ö"}x', '{"a":"ö"}')
    assert json.dumps(arguments) == json.dumps({"a": "ö"})
    assert str(CallArguments({"a": "ö"})) == '{"a": "ö"}'
    with pytest.raises(TypeError):
        arguments + 1  # type: ignore[operator]  # what must not work
    with pytest.raises(TypeError):
        1 + arguments  # type: ignore[operator]  # what must not work


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            {"role": "assistant", "content": [], "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}],
                "content": None,
            },
        ),
        ({"role": "developer", "content": "a"}, {"role": "system", "content": "a"}),
        ({"role": "user", "content": "a", "name": "Ann"}, {"role": "user", "content": "a", "name": "Ann"}),
        (
            {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]},
            {"role": "assistant", "content": "a\nb"},
        ),
        ({"role": "assistant", "content": None, "refusal": "no"}, {"role": "assistant", "content": "no"}),
        (
            {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": None},
            {"role": "assistant", "reasoning": "hm", "content": ""},
        ),
        (
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "a"}], "name": "f"},
            {"role": "tool", "content": "a", "tool_call_id": "1", "name": "f"},
        ),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}, "index": 0}]},
            {
                "role": "assistant",
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
                "content": "",
            },
        ),
    ],
)
def test_messages_in_openais_shapes_are_taken(message: dict[str, Any], expected: dict[str, Any]) -> None:
    assert parsed(message) == (expected,)


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", 5, None, ["text"], {}])
def test_parts_that_are_no_text_are_refused_by_name(kind: Any) -> None:
    with pytest.raises(InvalidRequestError, match="images, audio and files") as raised:
        parsed({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": kind}]})

    assert raised.value.param == "messages[0].content[1].type"


def test_which_variables_a_template_reads_is_known() -> None:
    template = ChatTemplate({"default": "{{ messages }}", "tool_use": LLAMA31}, {}, origin="test")

    assert template.reads("tools", has_tools=True)
    assert not template.reads("tools")
    assert ChatTemplate({"default": QWEN3}, {}, origin="test").reads("enable_thinking")
