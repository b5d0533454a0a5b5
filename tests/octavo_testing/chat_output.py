"""Reads texts with a parser, in pieces of any size, and joins what it says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from octavo_server.chat_output.parser import (
    ChatEvent,
    ContentText,
    OutputParser,
    ReasoningText,
    ToolCallArguments,
    ToolCallBegin,
)


@dataclass(slots=True)
class Read:
    """An answer as a client joins it; `calls` are name and text of the arguments."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)

    @property
    def parsed_calls(self) -> list[tuple[str, Any]]:
        """The calls with their arguments read as JSON."""
        return [(name, json.loads(text)) for name, text in self.calls]


def join(events: Iterable[ChatEvent]) -> Read:
    """What the events say together; a call's arguments must follow its beginning, and calls come in order."""
    read = Read()
    for event in events:
        if isinstance(event, ContentText):
            read.content += event.text
        elif isinstance(event, ReasoningText):
            assert not read.content, "reasoning after the answer began"
            assert not read.calls, "reasoning after a call began"
            read.reasoning += event.text
        elif isinstance(event, ToolCallBegin):
            assert event.index == len(read.calls)
            read.calls.append((event.name, ""))
        else:
            assert isinstance(event, ToolCallArguments)
            assert event.index == len(read.calls) - 1
            name, text = read.calls[event.index]
            read.calls[event.index] = (name, text + event.text)
    return read


def read_pieces(parser: OutputParser, pieces: Sequence[str]) -> Read:
    """What the parser says of a text that comes in `pieces`."""
    events = [event for piece in pieces for event in parser.feed(piece)]
    events += parser.finish()
    assert all(getattr(event, "text", "-") for event in events), "an event that says nothing"
    return join(events)


def read_whole(parser: OutputParser, text: str) -> Read:
    """What the parser says of a text that comes at once."""
    return read_pieces(parser, [text])


def split_at(text: str, places: Iterable[int]) -> list[str]:
    """The text cut at `places`."""
    cuts = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(cuts)]
