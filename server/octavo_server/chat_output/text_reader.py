"""What a parser reads from: text that comes in pieces, read once, as a generator that yields where it needs more.

So a format is written as if the whole text were there, and the pieces cannot change what it reads: no method looks at
where one ended. Each method that may need more text is a generator, for `yield from`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import TypeVar

from octavo_server.chat_output.json_cursor import JsonCursor
from octavo_server.chat_output.parser import (
    ChatEvent,
    ContentText,
    ToolCallArguments,
    ToolCallBegin,
)

T = TypeVar("T")
Reading = Generator[None, None, T]
"""Yields where more text is needed."""

SPACE = " \t\r\n"


class TextSink:
    """Makes text events; white space that touches a mark is the format's own, and is dropped."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._space = ""
        self._has_text = False
        self._is_after_mark = False

    def add(self, text: str) -> None:
        """More text; its white space is kept back until it is known what follows."""
        text = self._space + text
        body = text.rstrip(SPACE)
        self._space = text[len(body) :]
        if not body:
            return
        if self._is_after_mark and not self._has_text:
            body = body.lstrip(SPACE)
        self._has_text, self._is_after_mark = True, False
        self._emit(body)

    def mark(self) -> None:
        """What is no text stands here."""
        self._is_after_mark = True

    def finish(self) -> None:
        """Nothing follows."""
        if self._space and not self._is_after_mark:
            self._emit(self._space)
        self._space = ""


class TextReader:
    """The text that has come and was not read, and the events made of what was."""

    def __init__(self) -> None:
        self.events: list[ChatEvent] = []
        self._held = ""
        self._has_ended = False
        self._recorded: list[str] = []
        self._num_calls = 0
        self._content = TextSink(lambda text: self.events.append(ContentText(text)))

    def push(self, text: str) -> None:
        self._held += text

    def end(self) -> None:
        """No more text will come."""
        self._has_ended = True

    # What a format makes.

    def content(self, text: str) -> None:
        self._content.add(text)

    def finish_content(self) -> None:
        """No more content will come."""
        self._content.finish()

    def begin_call(self, name: str) -> None:
        """Opens the next call."""
        self._content.mark()
        self.events.append(ToolCallBegin(self._num_calls, name))
        self._num_calls += 1

    def arguments(self, text: str) -> None:
        """More of the last call's arguments."""
        if text:
            self.events.append(ToolCallArguments(self._num_calls - 1, text))

    # What a format reads.

    def record(self) -> None:
        """Begins to remember what is read, for `recorded`."""
        self._recorded = []

    @property
    def recorded(self) -> str:
        """What was read since `record`."""
        return "".join(self._recorded)

    def peek(self) -> Reading[str]:
        """The next character; "" at the end."""
        while not self._held and not self._has_ended:
            yield
        return self._held[:1]

    def skip_space(self) -> Reading[str]:
        """Reads white space."""
        skipped = ""
        while True:
            rest = self._held.lstrip(SPACE)
            skipped += self._read(len(self._held) - len(rest))
            if rest or self._has_ended:
                return skipped
            yield

    def accept(self, *marks: str) -> Reading[str | None]:
        """Reads one of `marks`, the longest, if it stands here."""
        while True:
            found = max((mark for mark in marks if self._held.startswith(mark)), key=len, default=None)
            is_longer_possible = any(
                len(mark) > len(self._held) and mark.startswith(self._held) for mark in marks if mark != found
            )
            if is_longer_possible and not self._has_ended:
                yield
                continue
            self._read(len(found or ""))
            return found

    def close(self, mark: str) -> Reading[bool]:
        """Reads the mark that ends a call, or what the text's end has left of it; False where something else stands here."""
        if (yield from self.accept(mark)) is not None:
            return True
        is_cut = self._has_ended and mark.startswith(self._held)
        if is_cut:
            self._read(len(self._held))
        return is_cut

    def until(self, marks: tuple[str, ...], pass_on: Callable[[str], None]) -> Reading[str | None]:
        """Passes text on up to the first of `marks`, which is read too and returned; None where the text ends first."""
        while True:
            at, mark = min(
                ((at, mark) for mark in marks if (at := self._held.find(mark)) >= 0), default=(len(self._held), None)
            )
            keep = 0 if mark or self._has_ended else _possible_mark_length(self._held, marks)
            pass_on(self._read(at - keep))
            if mark is not None:
                self._read(len(mark))
                return mark
            if self._has_ended:
                return None
            yield

    def content_until(self, *marks: str) -> Reading[str | None]:
        """`until`, the text being content."""
        return (yield from self.until(marks, self.content))

    def text_until(self, *marks: str) -> Reading[str | None]:
        """The text up to the first of `marks`, which is read too; None where it never comes."""
        parts: list[str] = []
        mark = yield from self.until(marks, parts.append)
        return None if mark is None else "".join(parts)

    def word(self, characters: frozenset[str]) -> Reading[str]:
        """Reads `characters` as long as they stand here."""
        length = 0
        while True:
            while length < len(self._held) and self._held[length] in characters:
                length += 1
            if length < len(self._held) or self._has_ended:
                return self._read(length)
            yield

    def json_value(self, pass_on: Callable[[str], None]) -> Reading[bool]:
        """Passes a JSON value on as it comes; False where it breaks off, before the character that does not fit."""
        cursor = JsonCursor()
        while True:
            taken, text = cursor.take(self._held)
            self._read(taken)
            pass_on(text)
            if self._has_ended:
                cursor.end()
            if cursor.is_complete or cursor.is_broken or self._has_ended:
                return cursor.is_complete
            yield

    def json_text(self) -> Reading[str | None]:
        """A whole JSON value's text; None where it breaks off."""
        parts: list[str] = []
        return "".join(parts) if (yield from self.json_value(parts.append)) else None

    def json_string(self) -> Reading[str | None]:
        """The value of a JSON string; None where there is none."""
        if (yield from self.peek()) != '"':
            return None
        text = yield from self.json_text()
        return None if text is None else str(json.loads(text))

    def drain(self, pass_on: Callable[[str], None]) -> Reading[None]:
        """Passes all that comes on."""
        yield from self.until((), pass_on)

    def _read(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        self._recorded.append(text)
        return text


class ReadingParser(ABC):
    """An OutputParser whose format is a generator over a reader."""

    def __init__(self) -> None:
        self._reader = TextReader()
        self._reading = self._read_all()

    def feed(self, text: str) -> list[ChatEvent]:
        """Takes more text; says what is certain."""
        self._reader.push(text)
        return self._advance()

    def finish(self) -> list[ChatEvent]:
        """The text has ended."""
        self._reader.end()
        return self._advance()

    @abstractmethod
    def read(self, reader: TextReader) -> Reading[None]:
        """Reads the whole text."""

    def _read_all(self) -> Reading[None]:
        yield from self.read(self._reader)
        yield from self._reader.drain(self._reader.content)
        self._reader.finish_content()

    def _advance(self) -> list[ChatEvent]:
        next(self._reading, None)
        events, self._reader.events = self._reader.events, []
        return events


def _possible_mark_length(text: str, marks: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that begins one of `marks`."""
    longest = max((len(mark) for mark in marks), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(mark.startswith(end) for mark in marks):
            return length
    return 0
