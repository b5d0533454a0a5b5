"""How one request's answers are to be read: made once a request, gives a parser and a meter to each of its outputs.

The way from a model's text to events, whatever endpoint words them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from octavo_server.chat_output.forced import NamedCallParser, RequiredCallsParser
from octavo_server.chat_output.formats import Schemas, ToolFormat
from octavo_server.chat_output.parser import ChatEvent, OutputParser, ReasoningText, ToolCallArguments, ToolCallBegin
from octavo_server.chat_output.plain import PlainParser
from octavo_server.chat_output.reasoning import Phase, ReasoningFormat, ReasoningMeter, ReasoningParser


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFormat:
    """What stands in the answers of one request."""

    reasoning: ReasoningFormat | None = None
    """None: the model does not think aloud, or nobody asked to tell it apart."""
    phase: Phase = Phase.ANSWERING
    """How the answers begin; without meaning where there is no reasoning."""
    tools: ToolFormat | None = None
    """How the model writes calls; None: it is not to call, or is forced to."""
    schemas: Schemas = field(default_factory=dict)
    """The functions that may be called."""
    is_forced: bool = False
    """A grammar makes the answer an array of calls."""
    forced_name: str | None = None
    """A grammar makes the answer the arguments of this function."""
    max_calls: int | None = None
    """Calls beyond are dropped."""
    shows_reasoning: bool = True
    has_short_ids: bool = False
    """Ids of calls must be 9 letters and digits, which the model's templates insist on."""

    @property
    def is_plain(self) -> bool:
        """Whether the text is nothing but content."""
        return self.reasoning is None and self.tools is None and not self.is_forced and self.forced_name is None

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that the parser must see, also where they are special tokens."""
        marks = () if self.tools is None else self.tools.marks
        return marks if self.reasoning is None else (*marks, self.reasoning.opening, self.reasoning.closing)

    def parser(self) -> OutputParser:
        """A parser for one output."""
        inner: OutputParser
        if self.forced_name is not None:
            inner = NamedCallParser(self.forced_name)
        elif self.is_forced:
            inner = RequiredCallsParser()
        else:
            inner = PlainParser() if self.tools is None else self.tools.make(self.schemas)
        if self.reasoning is not None:
            inner = ReasoningParser(self.reasoning, self.phase, inner)
        if self.max_calls is None and self.shows_reasoning:
            return inner
        return _Filter(inner, self)

    def meter(self, token_text: Callable[[int], bytes]) -> ReasoningMeter | None:
        """What counts one output's reasoning tokens; None where there can be none."""
        if self.reasoning is None or self.phase is Phase.ANSWERING:
            return None
        return ReasoningMeter(self.reasoning, self.phase, token_text)

    def lets_through(self, event: ChatEvent) -> bool:
        """Whether the client is to see it."""
        if isinstance(event, ReasoningText):
            return self.shows_reasoning
        if isinstance(event, ToolCallBegin | ToolCallArguments):
            return self.max_calls is None or event.index < self.max_calls
        return True


class _Filter:
    """Leaves out what the client does not want."""

    def __init__(self, inner: OutputParser, form: AnswerFormat) -> None:
        self._inner = inner
        self._form = form

    def feed(self, text: str) -> list[ChatEvent]:
        return [event for event in self._inner.feed(text) if self._form.lets_through(event)]

    def finish(self) -> list[ChatEvent]:
        return [event for event in self._inner.finish() if self._form.lets_through(event)]
