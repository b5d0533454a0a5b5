"""What an assistant's text says: reasoning, content and tool calls, told as events while the text comes.

One incremental parser serves streams and whole answers alike. Invariant: however the text is split over calls of `feed`,
the events, joined, are the same. Pure: no clock, no ids; what an endpoint calls a tool call is the endpoint's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ReasoningText:
    """More of what the model thought."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentText:
    """More of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallBegin:
    """A tool call opens; `index` counts an answer's calls from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of the JSON text of the arguments of call `index`."""

    index: int
    text: str


ChatEvent = ReasoningText | ContentText | ToolCallBegin | ToolCallArguments


class OutputParser(Protocol):
    """Reads one output's text once."""

    def feed(self, text: str) -> list[ChatEvent]:
        """Takes more text; says what is certain."""

    def finish(self) -> list[ChatEvent]:
        """The text has ended: what was held back, and the end of an open tool call's arguments."""
