"""Llama 3.x: the answer is `{"name": …, "parameters": {…}}`, several separated by `;`, with or without `<|python_tag|>`.

An object is a call only where its name is that of a tool: any JSON answer begins the same way.
"""

from __future__ import annotations

from collections.abc import Collection

from octavo_server.chat_output.calls import read_call
from octavo_server.chat_output.text_reader import Reading, ReadingParser, TextReader

PYTHON_TAG = "<|python_tag|>"


class Llama3JsonParser(ReadingParser):
    """Looks for calls where the answer begins, after a call, and after the tag."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self._names = names

    def read(self, reader: TextReader) -> Reading[None]:
        mark: str | None = ""
        while mark is not None:
            reader.content((yield from reader.skip_space()))
            mark = mark or (yield from reader.accept(PYTHON_TAG)) or ""
            reader.record()
            yield from reader.skip_space()
            call = yield from read_call(reader, self._names.__contains__)
            if not call.begun:
                reader.content(mark + reader.recorded)
                mark = yield from reader.content_until(PYTHON_TAG)
                continue
            reader.content((yield from reader.skip_space()))
            yield from reader.accept(";", ",")
            mark = ""
