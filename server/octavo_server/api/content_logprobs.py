"""Which tokens said an answer's content, where reasoning, calls and markup stand beside it.

A token may say nothing at once (part of a character, or what might begin a call), and what comes together may hold
reasoning and content. So tokens are found by their place in the text, however the answer is cut into pieces.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Any, NamedTuple

from octavo_server.chat_output.parser import ContentText, ToolCallBegin

if TYPE_CHECKING:
    from collections.abc import Iterable

    from octavo_server.chat_output.parser import ChatEvent

Entry = dict[str, Any]
"""One token's, as `chat_logprobs` makes it."""


class _Place(NamedTuple):
    """A token's characters in the text that nothing has been said of; none where it completes no character."""

    start: int
    end: int
    entry: Entry


class ContentLogprobs:
    """Owns the text of the tokens of which nothing has been said yet."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._text = ""
        self._places: list[_Place] = []

    def add(self, entries: Iterable[Entry]) -> None:
        """The next tokens that the text shows."""
        pieces = [self._text]
        at = len(self._text)
        for entry in entries:
            pieces.append(self._decoder.decode(bytes(entry["bytes"])))
            self._places.append(_Place(at, at + len(pieces[-1]), entry))
            at = self._places[-1].end
        self._text = "".join(pieces)

    def take(self, said: Iterable[ChatEvent]) -> list[list[Entry]]:
        """Those of each content among `said`, in its order."""
        taken, done, first = [], 0, 0
        for event in said:
            if isinstance(event, ToolCallBegin):
                continue
            start = self._text.find(event.text, done)
            if start >= 0:
                done = start + len(event.text)
            entries = []
            while first < len(self._places) and self._places[first].start < done:
                if start >= 0 and (self._places[first].end > start or self._places[first].start >= start):
                    entries.append(self._places[first].entry)
                first += 1
            if isinstance(event, ContentText):
                taken.append(entries)
        self._text = self._text[done:]
        self._places = [_Place(max(0, at - done), end - done, entry) for at, end, entry in self._places[first:]]
        return taken

    def unfinished(self) -> list[Entry]:
        """Those of half a character at the end."""
        return [place.entry for place in self._places if place.start == len(self._text)]
