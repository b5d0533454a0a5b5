"""Chat templates, against transformers' own rendering of the same source."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_server.errors import InvalidRequestError, StartupError
from octavo_server.tokenizer.chat_template import ChatTemplate

CHATML = (
    "{% for message in messages %}\n"
    "    {%- if loop.index0 > 20 %}{% break %}{% endif %}\n"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}\n"
    "{%- endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
RICH = (
    "{{ bos_token }}{%- set ns = namespace(n=0) -%}\n"
    "{% if tools %}{{ tools | tojson }}|{{ tools | tojson(indent=2) }}{% endif %}\n"
    "{% for message in messages if message.role != 'hidden' %}\n"
    "  {% set ns.n = ns.n + 1 %}\n"
    "  {% if message.role == 'assistant' %}\n"
    "{% generation %}{{ message.content | trim }}{{ eos_token }}{% endgeneration %}\n"
    "  {% else %}[{{ ns.n }}] {{ message.content }}{% endif %}\n"
    "{% endfor %}{{ mood | default('plain') }}{{ undefined_thing }}"
)
CHAT = [
    {"role": "system", "content": "Be <brief> & 'kind'."},
    {"role": "user", "content": "Grüße\n\n  indented  "},
    {"role": "assistant", "content": "  Hallo  "},
    {"role": "hidden", "content": "no"},
]
TOOLS = [{"type": "function", "function": {"name": "größe", "parameters": {"b": 1, "a": [True, None]}}}]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def ours(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    return ChatTemplate({"default": source}, SPECIAL, origin="test").render(messages, **options)


def theirs(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    extra = options.pop("extra", {})
    options.setdefault("add_generation_prompt", True)
    rendered, _ = render_jinja_template([messages], chat_template=source, **SPECIAL, **extra, **options)
    return str(rendered[0])


@pytest.mark.parametrize("source", [CHATML, RICH])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_generation_prompt": False},
        {"tools": TOOLS},
        {"extra": {"mood": "bright", "bos_token": "<other>"}},
        {"documents": [{"title": "a", "text": "b"}]},
    ],
)
def test_templates_render_as_in_transformers(source: str, options: dict[str, Any]) -> None:
    expected = {**options}
    if "bos_token" in options.get("extra", {}):
        # transformers lets a caller's variables win as well, through its merged dict
        expected["extra"] = {"mood": "bright"}
        expected_text = theirs(source, CHAT, **expected).replace("<s>", "<other>", 1)
    else:
        expected_text = theirs(source, CHAT, **expected)

    assert ours(source, CHAT, **options) == expected_text


@pytest.mark.parametrize(
    "last",
    [
        {"role": "assistant", "content": "The answer is"},
        {"role": "assistant", "content": "The answer is "},
        {"role": "user", "content": "say the answer"},
    ],
)
@pytest.mark.parametrize("source", [CHATML, RICH])
def test_a_message_is_continued_as_in_transformers(source: str, last: dict[str, Any]) -> None:
    options = {"continue_final_message": True, "add_generation_prompt": False}

    text = ours(source, [*CHAT, last], **options)

    assert text == theirs(source, [*CHAT, last], **options)
    assert text.rstrip().endswith(last["content"].rstrip())


def test_content_of_several_parts_is_continued_at_its_last_text() -> None:
    source = "{% for m in messages %}{% for part in m.content %}<{{ part.text }}>{% endfor %}{% endfor %}"
    chat = [{"role": "assistant", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]

    assert ours(source, chat, continue_final_message=True) == "<one><two"
    assert chat[0]["content"][1]["text"] == "two"


def test_reasoning_is_found_under_every_name() -> None:
    source = "{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}"

    for name in ("reasoning_content", "thinking", "reasoning"):
        assert ours(source, [{"role": "assistant", "content": "", name: "because"}]) == "because|because"


def test_the_template_for_tools_is_taken_when_there_are_tools() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "tools"}, {}, origin="test")

    assert (template.render([]), template.render([], tools=TOOLS)) == ("plain", "tools")


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[9].content }}", "no element 9"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for n in range(1000000) %}x{% endfor %}", "Range too big"),
        ("{{ 'a' + 1 }}", "can only concatenate"),
    ],
)
def test_what_a_template_refuses_or_breaks_on_is_the_clients_error(source: str, named: str) -> None:
    with pytest.raises(InvalidRequestError, match=named) as caught:
        ours(source, CHAT)

    assert caught.value.param == "messages"


def test_half_a_character_in_the_templates_variables_is_the_clients_error() -> None:
    with pytest.raises(InvalidRequestError, match="lone surrogate") as raised:
        ours("{{ mood }}", [], extra={"mood": "\ud800"})

    assert raised.value.param == "chat_template_kwargs"


def test_nothing_to_continue_is_the_clients_error() -> None:
    for chat, source in [([], CHATML), ([{"role": "user", "content": None}], CHATML), (CHAT[:2], "constant")]:
        with pytest.raises(InvalidRequestError, match="continue_final_message"):
            ours(source, chat, continue_final_message=True)


def test_a_template_that_does_not_parse_stops_the_start() -> None:
    with pytest.raises(StartupError, match=r"model\.gguf: chat template 'default' does not parse, line 2") as caught:
        ChatTemplate({"default": "a\n{% if %}"}, {}, origin="model.gguf")

    assert caught.value.reason == "ModelInvalid"


def test_the_time_is_given_to_templates() -> None:
    assert len(ours("{{ strftime_now('%Y-%m-%d') }}", [])) == 10
