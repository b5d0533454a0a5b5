"""DeepSeek: V3 and R1 write `type<sep>name`, a new line and fenced JSON for each call, V3.1 `name<sep>{…}`."""

from __future__ import annotations

from octavo_server.chat_output.calls import read_arguments
from octavo_server.chat_output.text_reader import SPACE, Reading, ReadingParser, TextReader

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_SEP, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
FENCE = "```"


class DeepSeekV3Parser(ReadingParser):
    """Both forms, told apart by what follows the separator."""

    def read(self, reader: TextReader) -> Reading[None]:
        while (mark := (yield from reader.content_until(CALLS_BEGIN, CALL_BEGIN))) is not None:
            reader.record()
            if mark == CALLS_BEGIN:
                yield from reader.skip_space()
                if (yield from reader.accept(CALL_BEGIN)) is None:
                    reader.content(CALLS_BEGIN + reader.recorded)
                    continue
            any_begun = False
            while (yield from self._read_call(reader)):
                any_begun = True
                reader.record()
                yield from reader.skip_space()
                if (yield from reader.accept(CALL_BEGIN)) is None:
                    yield from reader.close(CALLS_END)
                    break
            else:
                reader.content(("" if any_begun else mark) + reader.recorded)

    def _read_call(self, reader: TextReader) -> Reading[bool]:
        """Reads from behind the mark; False where no arguments follow."""
        name = yield from reader.text_until(CALL_SEP)
        if name is None:
            return False
        yield from reader.skip_space()
        if (yield from reader.peek()) != "{":
            # What came was the type, always "function".
            name = yield from reader.text_until("\n")
            if name is None:
                return False
            yield from reader.skip_space()
            yield from reader.accept(FENCE, FENCE + "json")
            yield from reader.skip_space()
            if (yield from reader.peek()) != "{":
                return False
        reader.begin_call(name.strip(SPACE))
        yield from read_arguments(reader)
        yield from reader.skip_space()
        yield from reader.accept(FENCE)
        yield from reader.skip_space()
        yield from reader.close(CALL_END)
        return True
