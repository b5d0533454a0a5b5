"""Hermes, Qwen2.5, Qwen3 and many others: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, once for each call."""

from __future__ import annotations

from octavo_server.chat_output.calls import read_call
from octavo_server.chat_output.text_reader import Reading, ReadingParser, TextReader

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(ReadingParser):
    """Whatever stands outside of the tags is content."""

    def read(self, reader: TextReader) -> Reading[None]:
        while (yield from reader.content_until(OPEN)) is not None:
            yield from self._read_block(reader)

    def _read_block(self, reader: TextReader) -> Reading[None]:
        opening = OPEN
        while True:
            reader.record()
            yield from reader.skip_space()
            if not opening and (yield from reader.peek()) != "{":
                break
            call = yield from read_call(reader, bool)
            if not call.begun:
                reader.content(opening + reader.recorded)
                return
            opening = ""
        yield from reader.close(CLOSE)
