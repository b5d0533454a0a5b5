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
)

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


def test_every_alias_means_a_format_and_hides_none() -> None:
    for aliases, formats in ((TOOL_ALIASES, TOOL_FORMATS), (REASONING_ALIASES, REASONING_FORMATS)):
        assert set(aliases.values()) <= set(formats)
        assert not set(aliases) & set(formats)
