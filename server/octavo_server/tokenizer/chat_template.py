"""Renders a chat with the model's own Jinja template, giving it what transformers' `apply_chat_template` gives.

Templates come from strangers: they run in Jinja's immutable sandbox and see plain JSON values alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from octavo_server.errors import InvalidRequestError, StartupError

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

DEFAULT_TEMPLATE = "default"
TOOL_TEMPLATE = "tool_use"
"""Name of the template that is preferred where a checkpoint has several and tools are given."""

_CONTINUATION_MARK = "OCTAVO_CONTINUES_HERE "
# What a template's expressions may raise on messages that they do not expect.
_TEMPLATE_FAULTS = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError)
_OWN_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt", "self"})
"""What `render` gives a template by itself; `self` is Jinja's."""
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """The compiled templates of one model; safe to use from several threads."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str], *, origin: str) -> None:
        """Compiles `sources` (name -> Jinja source).

        Raises:
            StartupError: ModelInvalid, for a template that does not parse.
        """
        from jinja2 import TemplateSyntaxError, meta

        environment = _environment()
        self._templates: dict[str, Template] = {}
        self._variables: dict[str, frozenset[str]] = {}
        for name, source in sources.items():
            try:
                self._templates[name] = environment.from_string(source)
                self._variables[name] = frozenset(meta.find_undeclared_variables(environment.parse(source)))
            except TemplateSyntaxError as error:
                message = f"{origin}: chat template {name!r} does not parse, line {error.lineno}: {error.message}"
                raise StartupError("ModelInvalid", message) from error
        self._special_tokens = dict(special_tokens)

    def reads(self, variable: str, *, has_tools: bool = False) -> bool:
        """Whether the template looks at a variable; `has_tools`: the one that is taken where there are tools."""
        return variable in self._variables[self._name(has_tools)]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text of `messages`; `extra` are further variables of the template (`chat_template_kwargs`).

        Raises:
            InvalidRequestError: the template refuses the messages, or there is nothing to continue.
        """
        from jinja2 import TemplateError

        chat = [_with_reasoning_names(message) for message in messages]
        if continue_final_message:
            chat = _mark_end(chat)
        template = self._templates[self._name(bool(tools))]
        taken = next((name for name in extra or {} if name in _OWN_VARIABLES), None)
        if taken is not None:
            message = f"chat_template_kwargs may not hold {taken!r}, which the request itself decides; leave it out"
            raise InvalidRequestError(message, param="chat_template_kwargs")
        variables = {**self._special_tokens, **(extra or {})}
        try:
            text = template.render(
                **variables,
                messages=chat,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt and not continue_final_message,
            )
        except (TemplateError, *_TEMPLATE_FAULTS) as error:
            raise InvalidRequestError(f"the chat template refuses these messages: {error}", param="messages") from error
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            message = "chat_template_kwargs holds a lone surrogate, which is no text; send valid Unicode"
            raise InvalidRequestError(message, param="chat_template_kwargs") from error
        return _cut_at_mark(text) if continue_final_message else text

    def _name(self, has_tools: bool) -> str:
        if has_tools and TOOL_TEMPLATE in self._templates:
            return TOOL_TEMPLATE
        return DEFAULT_TEMPLATE if DEFAULT_TEMPLATE in self._templates else next(iter(self._templates))


def _environment() -> ImmutableSandboxedEnvironment:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """`{% generation %}` marks what the assistant wrote, for training; here its body is plain text."""

        tags = {"generation"}  # noqa: RUF012  # Jinja reads the plain class attribute

        def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    # Jinja's own tojson escapes HTML.
    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _with_reasoning_names(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that has its reasoning under the names that templates read, whichever the client used."""
    reasoning = next((message[name] for name in _REASONING_FIELDS if message.get(name) is not None), None)
    if reasoning is None:
        return dict(message)
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _mark_end(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    content = chat[-1].get("content") if chat else None
    if isinstance(content, str):
        return [*chat[:-1], {**chat[-1], "content": content + _CONTINUATION_MARK}]
    if isinstance(content, list):
        for index in reversed(range(len(content))):
            if "text" in content[index]:
                marked = {**content[index], "text": content[index]["text"] + _CONTINUATION_MARK}
                return [*chat[:-1], {**chat[-1], "content": [*content[:index], marked, *content[index + 1 :]]}]
    raise InvalidRequestError("continue_final_message needs a last message with text to continue", param="messages")


def _cut_at_mark(text: str) -> str:
    position = text.rfind(_CONTINUATION_MARK.strip())
    if position < 0:
        message = "continue_final_message: the chat template drops the text of the last message"
        raise InvalidRequestError(message, param="continue_final_message")
    # A template that strips its messages took the mark's space away, and the text's own before it must go too.
    is_whole = text.startswith(_CONTINUATION_MARK, position)
    return text[:position] if is_whole else text[:position].rstrip()
