"""Mistral: `[TOOL_CALLS]` and an array of calls, or, in newer models, `[TOOL_CALLS]name[ARGS]{…}` for each call."""

from __future__ import annotations

import string

from octavo_server.chat_output.calls import read_arguments, read_calls
from octavo_server.chat_output.text_reader import Reading, ReadingParser, TextReader

TOOL_CALLS, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_NAME_CHARS = frozenset(string.ascii_letters + string.digits + "_-.")


class MistralParser(ReadingParser):
    """Both forms, told apart by what follows the mark."""

    def read(self, reader: TextReader) -> Reading[None]:
        while (yield from reader.content_until(TOOL_CALLS)) is not None:
            reader.record()
            yield from reader.skip_space()
            is_array = (yield from reader.peek()) == "["
            begun = yield from (read_calls(reader, bool) if is_array else self._read_named(reader))
            if not begun:
                reader.content(TOOL_CALLS + reader.recorded)

    def _read_named(self, reader: TextReader) -> Reading[bool]:
        name = yield from reader.word(_NAME_CHARS)
        # The model's own id is replaced by one that nobody else has.
        if (yield from reader.accept(CALL_ID)) is not None:
            yield from reader.word(_NAME_CHARS)
        yield from reader.accept(ARGS)
        yield from reader.skip_space()
        if not name or (yield from reader.peek()) != "{":
            return False
        reader.begin_call(name)
        yield from read_arguments(reader)
        return True
