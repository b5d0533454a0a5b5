"""Calls that a grammar has forced: an array of calls, or the arguments of the one function that was named, as bare JSON."""

from __future__ import annotations

from octavo_server.chat_output.calls import read_arguments, read_calls
from octavo_server.chat_output.text_reader import Reading, ReadingParser, TextReader


class RequiredCallsParser(ReadingParser):
    """The whole answer is an array of calls."""

    def read(self, reader: TextReader) -> Reading[None]:
        reader.content((yield from reader.skip_space()))
        if not (yield from read_calls(reader, bool)):
            reader.content(reader.recorded)
        reader.content((yield from reader.skip_space()))


class NamedCallParser(ReadingParser):
    """The whole answer is the arguments of the function `name`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def read(self, reader: TextReader) -> Reading[None]:
        reader.content((yield from reader.skip_space()))
        if (yield from reader.peek()) == "{":
            reader.begin_call(self._name)
            yield from read_arguments(reader)
        reader.content((yield from reader.skip_space()))
