"""The formats by name, and which of them a chat template speaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from octavo_server.chat_output import deepseek_v3, generic, hermes, llama3_json, mistral, qwen3_coder
from octavo_server.chat_output.parser import OutputParser
from octavo_server.chat_output.reasoning import Phase, ReasoningFormat

Schemas = Mapping[str, Mapping[str, Any]]
"""Function → schema of its parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How a family of models writes tool calls."""

    make: Callable[[Schemas], OutputParser]
    marks: tuple[str, ...] = ()
    """Texts that the parser must see though they may be special tokens."""
    signs: tuple[str, ...] = ()
    """A chat template that holds all of them speaks this format."""
    opens_with: str | None = None
    """What every call begins with; None: a call may look like any JSON."""
    has_short_ids: bool = False
    """Ids of calls are 9 letters and digits, which its templates insist on."""


_DEEPSEEK_MARKS = (
    deepseek_v3.CALLS_BEGIN,
    deepseek_v3.CALL_BEGIN,
    deepseek_v3.CALL_SEP,
    deepseek_v3.CALL_END,
    deepseek_v3.CALLS_END,
)
# In the order in which a template is compared to their signs.
TOOL_FORMATS: Mapping[str, ToolFormat] = {
    "qwen3_coder": ToolFormat(
        make=qwen3_coder.Qwen3CoderParser,
        opens_with=qwen3_coder.OPEN,
        marks=(qwen3_coder.OPEN, qwen3_coder.CLOSE),
        signs=(qwen3_coder.FUNCTION, qwen3_coder.PARAMETER),
    ),
    "hermes": ToolFormat(
        make=lambda _: hermes.HermesParser(),
        opens_with=hermes.OPEN,
        marks=(hermes.OPEN, hermes.CLOSE),
        signs=(hermes.OPEN, hermes.CLOSE, "arguments"),
    ),
    "mistral": ToolFormat(
        make=lambda _: mistral.MistralParser(),
        opens_with=mistral.TOOL_CALLS,
        marks=(mistral.TOOL_CALLS, mistral.CALL_ID, mistral.ARGS),
        signs=(mistral.TOOL_CALLS,),
        has_short_ids=True,
    ),
    "deepseek_v3": ToolFormat(
        make=lambda _: deepseek_v3.DeepSeekV3Parser(),
        opens_with=deepseek_v3.CALLS_BEGIN,
        marks=_DEEPSEEK_MARKS,
        signs=(deepseek_v3.CALLS_BEGIN, deepseek_v3.CALL_SEP),
    ),
    "llama3_json": ToolFormat(
        make=llama3_json.Llama3JsonParser,
        marks=(llama3_json.PYTHON_TAG,),
        signs=("<|start_header_id|>", "<|eot_id|>", '"parameters": '),
    ),
    "generic": ToolFormat(make=generic.GenericParser),
}
# GLM's and others' tags are the same as hermes', what stands between them is not.
_OTHER_SIGNS = ("<arg_key>", "<invoke ")

TOOL_ALIASES: Mapping[str, str] = {
    "qwen": "hermes",
    "qwen25": "hermes",
    "qwen3_xml": "qwen3_coder",
    "llama3": "llama3_json",
    "llama4_json": "llama3_json",
    "deepseekv3": "deepseek_v3",
    "deepseek_v31": "deepseek_v3",
    "deepseek_r1": "deepseek_v3",
}

_THINK = ReasoningFormat(opening="<think>", closing="</think>")
REASONING_FORMATS: Mapping[str, ReasoningFormat] = {
    "think": _THINK,
    "deepseek_r1": ReasoningFormat(opening="<think>", closing="</think>", undecided=Phase.THINKING),
    "mistral": ReasoningFormat(opening="[THINK]", closing="[/THINK]"),
    "granite": ReasoningFormat(opening="Here is my thought process:", closing="Here is my response:"),
}
REASONING_ALIASES: Mapping[str, str] = {
    "qwen3": "think",
    "deepseek_v3": "think",
    "glm45": "think",
    "hunyuan_a13b": "think",
    "olmo3": "think",
    "step3": "deepseek_r1",
}


def recognise_tools(templates: str) -> str | None:
    """The name of the tool format that the templates' sources speak."""
    if any(sign in templates for sign in _OTHER_SIGNS):
        return None
    return next(
        (name for name, form in TOOL_FORMATS.items() if form.signs and all(sign in templates for sign in form.signs)),
        None,
    )


def recognise_reasoning(templates: str) -> str | None:
    """The name of the reasoning format that the templates' sources speak."""
    return next((name for name in ("think", "mistral") if REASONING_FORMATS[name].closing in templates), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedFormats:
    """The formats that a server reads its model's answers in."""

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None
    tools_name: str = "none"
    reasoning_name: str = "none"


def served_formats(tools: str, reasoning: str, templates: Mapping[str, str]) -> ServedFormats:
    """What two flags mean for a model with these chat templates: a name or alias, `auto` (the template's word) or `none`."""
    sources = "\n".join(templates.values())
    tools_name = recognise_tools(sources) or "none" if tools == "auto" else TOOL_ALIASES.get(tools, tools)
    reasoning_name = (
        recognise_reasoning(sources) or "none" if reasoning == "auto" else REASONING_ALIASES.get(reasoning, reasoning)
    )
    return ServedFormats(
        tools=TOOL_FORMATS.get(tools_name),
        reasoning=REASONING_FORMATS.get(reasoning_name),
        tools_name=tools_name,
        reasoning_name=reasoning_name,
    )
