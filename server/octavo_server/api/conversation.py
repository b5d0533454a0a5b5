"""From a conversation to what the engine gets: the rendered prompt, and how its answers are to be read.

Chat, responses and tokenize share it; each parses its own shapes into a `Conversation`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from octavo_server.api.prompts import encode_prompt
from octavo_server.api.tools import Tools, forced_calls
from octavo_server.chat_output.answer import AnswerFormat
from octavo_server.chat_output.reasoning import Phase, first_phase
from octavo_server.errors import InvalidRequestError
from octavo_server.structured_output.params import StructuredOutputsParams

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from octavo_server.api.messages import Message
    from octavo_server.chat_output.formats import ServedFormats
    from octavo_server.engine.request import SamplingParams
    from octavo_server.engine.served_model import ServedModel
    from octavo_server.tokenizer.tokenizer import Tokenizer

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
# Variables by which templates let thinking be turned on and off.
_SWITCHES = ("enable_thinking", "thinking")
_EFFORT = "reasoning_effort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What is said so far, and how it may go on."""

    messages: tuple[Message, ...]
    tools: Tools = field(default_factory=Tools)
    documents: tuple[Mapping[str, Any], ...] = ()
    reasoning_effort: str | None = None
    include_reasoning: bool = True
    """Whether the client is to see the reasoning."""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    """Put the tokenizer's own in front of what the template writes."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedChat:
    """A conversation as the engine and the reader of its answers need it."""

    prompt_token_ids: list[int]
    params: SamplingParams
    """Those that the client gave, with the grammar that binds the answer."""
    form: AnswerFormat
    shown_special_ids: tuple[int, ...]
    """Special tokens that the reader must see; it takes them out of the text."""
    ignored: tuple[str, ...]
    """Fields that change nothing with this model."""


def prepare(
    loaded: ServedModel,
    formats: ServedFormats,
    conversation: Conversation,
    params: SamplingParams,
    *,
    keep: int | None = None,
) -> PreparedChat:
    """Renders and encodes, keeping the last `keep` tokens; takes milliseconds to seconds, so not on the event loop.

    Raises:
        InvalidRequestError: the template refuses the messages, the model cannot do what is asked, or it is too long.
    """
    tokenizer = loaded.tokenizer
    _check_model_can(tokenizer, formats, conversation)
    variables, ignored = _template_variables(tokenizer, formats, conversation)
    text = render(tokenizer, conversation, variables)
    form = _answer_format(formats, conversation, text)
    ids = ((tokenizer.token_id(mark), mark) for mark in form.marks)
    return PreparedChat(
        # The template writes special tokens itself.
        prompt_token_ids=encode_prompt(loaded, text, add_special_tokens=conversation.add_special_tokens, keep=keep),
        params=_bound_params(loaded, params, conversation, form),
        form=form,
        shown_special_ids=tuple(
            sorted({found for found, _ in ids if found is not None and tokenizer.is_special(found)})
        ),
        ignored=ignored,
    )


def threads_for(loaded: ServedModel, conversation: Conversation) -> Executor | None:
    """Where to call `prepare`: apart where it compiles a grammar, which nobody else should wait for."""
    return loaded.grammars.threads if conversation.tools.mode == "required" else None


def render(tokenizer: Tokenizer, conversation: Conversation, variables: Mapping[str, Any]) -> str:
    """The prompt's text.

    Raises:
        InvalidRequestError: the template refuses the messages, or the model has none.
    """
    return tokenizer.render_chat(
        conversation.messages,
        tools=conversation.tools.definitions or None,
        documents=conversation.documents or None,
        add_generation_prompt=conversation.add_generation_prompt,
        continue_final_message=conversation.continue_final_message,
        extra=variables,
    )


def _check_model_can(tokenizer: Tokenizer, formats: ServedFormats, conversation: Conversation) -> None:
    tools = conversation.tools
    if tools.mode == "auto":
        if not tokenizer.template_reads("tools", has_tools=True):
            raise InvalidRequestError(
                "the model's chat template does not know tools, so the model would not see them; leave tools out, force "
                "a call with tool_choice, or start the server with a --chat-template that does",
                param="tools",
            )
        if formats.tools is None:
            raise InvalidRequestError(
                "tools with tool_choice auto need to know how this model writes calls, which its chat template does not "
                "tell; start the server with --tool-call-parser, or force a call with tool_choice",
                param="tools",
            )
    if conversation.documents and not tokenizer.template_reads("documents", has_tools=bool(tools.definitions)):
        raise InvalidRequestError(
            "the model's chat template does not read documents; put their text into a message", param="documents"
        )


def _template_variables(
    tokenizer: Tokenizer, formats: ServedFormats, conversation: Conversation
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """What the template gets beside the messages, and the fields that it does not look at."""
    effort, given = conversation.reasoning_effort, conversation.template_kwargs
    if effort is None:
        return given, ()
    has_tools = bool(conversation.tools.definitions)
    known = {name for name in (_EFFORT, *_SWITCHES) if tokenizer.template_reads(name, has_tools=has_tools)}
    variables: dict[str, Any] = {name: effort != "none" for name in _SWITCHES if name in known}
    if _EFFORT in known:
        variables[_EFFORT] = effort
    if known:
        return {**variables, **given}, ()
    if effort == "none" and formats.reasoning is not None:
        raise InvalidRequestError(
            "reasoning_effort is none, but this model's chat template has no switch for its reasoning; leave it out",
            param=_EFFORT,
        )
    # As vLLM, a hint that the template does not read changes nothing; unlike it, we say so.
    return given, () if effort == "none" else (_EFFORT,)


def _answer_format(formats: ServedFormats, conversation: Conversation, prompt: str) -> AnswerFormat:
    tools, reasoning = conversation.tools, formats.reasoning
    form = AnswerFormat(
        reasoning=reasoning,
        shows_reasoning=conversation.include_reasoning,
        has_short_ids=formats.tools is not None and formats.tools.has_short_ids,
        max_calls=None if tools.parallel or not tools.definitions else 1,
    )
    if reasoning is not None:
        continued = str(conversation.messages[-1]["content"]) if conversation.continue_final_message else None
        form = replace(form, phase=first_phase(reasoning, prompt, continued))
    if tools.mode == "auto":
        return replace(form, tools=formats.tools, schemas=tools.schemas)
    if tools.mode == "required":
        return replace(form, is_forced=True, forced_name=tools.forced_name)
    return form


def _bound_params(
    loaded: ServedModel, params: SamplingParams, conversation: Conversation, form: AnswerFormat
) -> SamplingParams:
    """The parameters with the grammar that binds the answer: that of forced calls, or what the client asked for.

    It binds what comes after the reasoning, and at once where there is none.
    """
    tools, wanted = conversation.tools, params.structured_outputs
    if tools.mode == "required":
        # Instead of a format that the client asks for: that is about content, and there will be none.
        wanted = _forced(loaded, tools)
    if wanted is None:
        return params
    if form.tools is not None:
        if form.tools.opens_with is None:
            raise InvalidRequestError(
                "this model's calls look like any JSON, so response_format and tools with tool_choice auto exclude each "
                "other; leave one out, or force a call with tool_choice",
                param="tools",
            )
        wanted = replace(wanted, unless=form.tools.opens_with)
    if form.reasoning is not None and form.phase is not Phase.ANSWERING:
        opening = form.reasoning.opening if form.phase is Phase.UNDECIDED else None
        wanted = replace(wanted, after=form.reasoning.closing, opening=opening)
    return replace(params, structured_outputs=wanted)


def _forced(loaded: ServedModel, tools: Tools) -> StructuredOutputsParams:
    try:
        wanted = StructuredOutputsParams(json=json.dumps(forced_calls(tools)))
        loaded.grammars.compile(wanted)
    except RecursionError as error:
        raise InvalidRequestError(
            "the parameters of tools are nested too deeply; flatten them", param="tools"
        ) from error
    except InvalidRequestError as error:
        reason = str(error).removeprefix("structured_outputs cannot be compiled: ").removeprefix("structured_outputs: ")
        raise InvalidRequestError(
            f"calls cannot be forced by the parameters of tools: {reason}", param="tools"
        ) from error
    return wanted
