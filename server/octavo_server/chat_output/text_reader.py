"""What a parser reads from: text that comes in pieces, read once, as a generator that yields where it needs more.

So a format is written as if the whole text were there, and the pieces cannot change what it reads: no method looks at
where one ended. Each method that may need more text is a generator, for `yield from`.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from functools import lru_cache
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
_SPACES = frozenset(SPACE)


def string_value(text: str) -> str:
    r"""The value of a JSON string's text; half of a pair (`\ud83d` alone), which is no text, becomes U+FFFD."""
    return str(json.loads(text)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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
        self._text = ""
        self._at = 0
        self._has_ended = False
        self._recorded: list[str] | None = None
        self._num_calls = 0
        self._content = TextSink(lambda text: self.events.append(ContentText(text)))

    def push(self, text: str) -> None:
        self._text, self._at = self._text[self._at :] + text, 0

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
        return "".join(self._recorded or ())

    def peek(self) -> Reading[str]:
        """The next character; "" at the end."""
        while not self._num_held and not self._has_ended:
            yield
        return self._text[self._at : self._at + 1]

    def skip_space(self) -> Reading[str]:
        """Reads white space."""
        return (yield from self.word(_SPACES))

    def accept(self, *marks: str) -> Reading[str | None]:
        """Reads one of `marks`, the longest, if it stands here."""
        while True:
            found = max((mark for mark in marks if self._text.startswith(mark, self._at)), key=len, default=None)
            if not self._has_ended and any(map(self._begins, marks)):
                yield
                continue
            self._read(len(found or ""))
            return found

    def close(self, mark: str) -> Reading[bool]:
        """Reads the mark that ends a call, or what the text's end has left of it; False where something else stands here."""
        if (yield from self.accept(mark)) is not None:
            return True
        is_cut = self._has_ended and self._begins(mark)
        if is_cut:
            self._read(self._num_held)
        return is_cut

    def until(self, marks: tuple[str, ...], pass_on: Callable[[str], None]) -> Reading[str | None]:
        """Passes text on up to the first of `marks`, which is read too and returned; None where the text ends first."""
        while True:
            found = _any_of(marks).search(self._text, self._at)
            if found is not None:
                pass_on(self._read(found.start() - self._at))
                return self._read(len(found[0]))
            keep = 0 if self._has_ended else _possible_mark_length(self._text[self._at :], marks)
            pass_on(self._read(self._num_held - keep))
            if self._has_ended:
                return None
            yield

    def content_until(self, *marks: str) -> Reading[str | None]:
        """`until`, the text being content, which nobody will ask for again."""
        self._recorded = None
        return (yield from self.until(marks, self.content))

    def text_until(self, *marks: str) -> Reading[str | None]:
        """The text up to the first of `marks`, which is read too; None where it never comes."""
        parts: list[str] = []
        mark = yield from self.until(marks, parts.append)
        return None if mark is None else "".join(parts)

    def word(self, characters: frozenset[str]) -> Reading[str]:
        """Reads `characters` as long as they stand here."""
        parts: list[str] = []
        while True:
            end = self._at
            while end < len(self._text) and self._text[end] in characters:
                end += 1
            parts.append(self._read(end - self._at))
            if self._num_held or self._has_ended:
                return "".join(parts)
            yield

    def json_value(self, pass_on: Callable[[str], None]) -> Reading[bool]:
        """Passes a JSON value on as it comes; False where it breaks off, before the character that does not fit."""
        cursor = JsonCursor()
        while True:
            end, text = cursor.take(self._text, self._at)
            self._read(end - self._at)
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
        return None if text is None else string_value(text)

    def drain(self, pass_on: Callable[[str], None]) -> Reading[None]:
        """Passes all that comes on."""
        self._recorded = None
        yield from self.until((), pass_on)

    @property
    def _num_held(self) -> int:
        """Characters that were not read yet."""
        return len(self._text) - self._at

    def _begins(self, mark: str) -> bool:
        """Whether all that is held is the beginning of `mark`, of which more may come."""
        return self._num_held < len(mark) and mark.startswith(self._text[self._at :])

    def _read(self, count: int) -> str:
        text = self._text[self._at : self._at + count]
        self._at += count
        if self._recorded is not None:
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


@lru_cache(maxsize=64)
def _any_of(marks: tuple[str, ...]) -> re.Pattern[str]:
    """Finds the first of `marks`, of several at one place the longest; without marks nothing."""
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or r"(?!)")


def _possible_mark_length(text: str, marks: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that begins one of `marks`."""
    longest = max((len(mark) for mark in marks), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(mark.startswith(end) for mark in marks):
            return length
    return 0
