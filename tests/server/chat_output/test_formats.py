"""Which format a chat template speaks."""

from __future__ import annotations

import pytest

from octavo_server.chat_output.formats import (
    REASONING_ALIASES,
    REASONING_FORMATS,
    TOOL_ALIASES,
    TOOL_FORMATS,
    recognise_reasoning,
    recognise_tools,
    served_formats,
)
from octavo_server.config import REASONING_PARSERS, TOOL_CALL_PARSERS

# What is telling in the templates of well-known models.
QWEN = r"""{{- "<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>" }}"""
QWEN3_CODER = (
    "{{- '<tool_call>\n<function=example>\n<parameter=example_1>\nvalue\n</parameter>\n</function>\n</tool_call>' }}"
)
GLM = "{{ '<tool_call>' ~ tc.name }}<arg_key>{{ k }}</arg_key></tool_call> arguments"
LLAMA = """<|start_header_id|>{{ '{"name": "' + tool_call.name + '", ' }}{{ '"parameters": ' }}<|eot_id|>"""
MISTRAL = '{{- "[TOOL_CALLS] [" }}'
DEEPSEEK = "{{'<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>'}}"
PLAIN = "{% for message in messages %}<|im_start|>{{ message.role }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (QWEN, "hermes"),
        (QWEN3_CODER, "qwen3_coder"),
        (LLAMA, "llama3_json"),
        (MISTRAL, "mistral"),
        (DEEPSEEK, "deepseek_v3"),
        (GLM, None),
        (PLAIN, None),
        ("<|start_header_id|>{{ message.content }}<|eot_id|>", None),
    ],
)
def test_a_template_tells_its_tool_format(template: str, name: str | None) -> None:
    assert recognise_tools(template) == name


@pytest.mark.parametrize(
    ("template", "name"),
    [("{{ '<think>\n\n</think>\n\n' }}", "think"), ("{{ '[THINK]' }}[/THINK]", "mistral"), (PLAIN, None)],
)
def test_a_template_tells_its_reasoning_format(template: str, name: str | None) -> None:
    assert recognise_reasoning(template) == name


def test_the_flags_take_the_names_of_all_formats_and_no_others() -> None:
    assert {"auto", "none", *TOOL_FORMATS, *TOOL_ALIASES} == set(TOOL_CALL_PARSERS)
    assert {"auto", "none", *REASONING_FORMATS, *REASONING_ALIASES} == set(REASONING_PARSERS)


@pytest.mark.parametrize(
    ("tools", "reasoning", "names"),
    [
        ("auto", "auto", ("hermes", "think")),
        ("none", "none", ("none", "none")),
        ("deepseek_v31", "qwen3", ("deepseek_v3", "think")),
        ("mistral", "deepseek_r1", ("mistral", "deepseek_r1")),
    ],
)
def test_a_flag_wins_over_the_template(tools: str, reasoning: str, names: tuple[str, str]) -> None:
    formats = served_formats(tools, reasoning, {"default": "plain", "tool_use": QWEN + "</think>"})

    assert (formats.tools_name, formats.reasoning_name) == names
    assert (formats.tools, formats.reasoning) == (TOOL_FORMATS.get(names[0]), REASONING_FORMATS.get(names[1]))


def test_every_alias_means_a_format_and_hides_none() -> None:
    for aliases, formats in ((TOOL_ALIASES, TOOL_FORMATS), (REASONING_ALIASES, REASONING_FORMATS)):
        assert set(aliases.values()) <= set(formats)
        assert not set(aliases) & set(formats)
