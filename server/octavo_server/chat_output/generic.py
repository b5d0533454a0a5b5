"""Models without a format of their own: a JSON call, or an array of them, at the beginning of a line, fenced or not.

It is a call only where its name is that of a tool.
"""

from __future__ import annotations

from collections.abc import Collection

from octavo_server.chat_output.calls import read_call, read_calls
from octavo_server.chat_output.text_reader import Reading, ReadingParser, TextReader

FENCE = "```"
_FENCES = (FENCE, "```json", "```tool_call", "```tool_code")


class GenericParser(ReadingParser):
    """Looks for calls at the beginning of each line."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self._names = names

    def read(self, reader: TextReader) -> Reading[None]:
        while True:
            if (yield from self._read_calls(reader)):
                continue
            if (yield from reader.content_until("\n")) is None:
                return
            reader.content("\n")

    def _read_calls(self, reader: TextReader) -> Reading[bool]:
        reader.content((yield from reader.skip_space()))
        reader.record()
        fence = yield from reader.accept(*_FENCES)
        yield from reader.skip_space()
        opening = reader.recorded
        if (yield from reader.peek()) == "[":
            begun = yield from read_calls(reader, self._names.__contains__)
        else:
            reader.record()
            begun = (yield from read_call(reader, self._names.__contains__)).begun
        if not begun:
            reader.content(opening + reader.recorded)
            return False
        reader.content((yield from reader.skip_space()))
        if fence is not None:
            yield from reader.close(FENCE)
        yield from reader.accept(",", ";")
        return True
