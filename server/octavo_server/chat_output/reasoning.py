"""Tells what a model thought from what it answers, and counts the tokens that it thought with.

Where the answer begins is the rendered prompt's word: a template may have opened the reasoning, or closed it already.
White space that touches the marks is theirs and belongs to neither text.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from octavo_server.chat_output.parser import ChatEvent, OutputParser, ReasoningText
from octavo_server.chat_output.plain import PlainParser
from octavo_server.chat_output.text_reader import SPACE, Reading, ReadingParser, TextReader, TextSink


class Phase(Enum):
    """Where in its answer a model is."""

    UNDECIDED = auto()
    """Nothing but white space has come: the opening mark may follow, or the answer."""
    THINKING = auto()
    ANSWERING = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningFormat:
    """The marks around a model's reasoning."""

    opening: str
    closing: str
    undecided: Phase = Phase.UNDECIDED
    """How the answer begins where the prompt does not say."""


def first_phase(form: ReasoningFormat, prompt: str, continued: str | None = None) -> Phase:
    """How the answer to `prompt` begins.

    Args:
        form: the model's marks.
        prompt: the rendered prompt.
        continued: the text that the answer goes on with, where a last message is continued.
    """
    if continued is not None:
        opened, closed = continued.rfind(form.opening), continued.rfind(form.closing)
        return Phase.THINKING if opened > closed else Phase.ANSWERING
    end = prompt.rstrip(SPACE)
    if end.endswith(form.opening):
        return Phase.THINKING
    return Phase.ANSWERING if end.endswith(form.closing) else form.undecided


class ReasoningParser(ReadingParser):
    """Reasoning first, then `inner` reads the rest."""

    def __init__(self, form: ReasoningFormat, phase: Phase, inner: OutputParser) -> None:
        super().__init__()
        self.phase = phase
        self.has_thought = phase is Phase.THINKING
        self._form = form
        self._inner = inner

    def finish(self) -> list[ChatEvent]:
        """The text has ended."""
        return super().finish() + self._inner.finish()

    def read(self, reader: TextReader) -> Reading[None]:
        if self.phase is not Phase.ANSWERING:
            space = yield from reader.skip_space()
            opened = (yield from reader.accept(self._form.opening)) is not None
            if opened or self.phase is Phase.THINKING:
                yield from self._read_reasoning(reader)
            else:
                reader.events += self._inner.feed(space)
        self.phase = Phase.ANSWERING
        yield from reader.drain(lambda text: reader.events.extend(self._inner.feed(text)))

    def _read_reasoning(self, reader: TextReader) -> Reading[None]:
        self.phase, self.has_thought = Phase.THINKING, True
        yield from reader.skip_space()
        thoughts = TextSink(lambda text: reader.events.append(ReasoningText(text)))
        if (yield from reader.until((self._form.closing,), thoughts.add)) is not None:
            self.phase = Phase.ANSWERING
            thoughts.mark()
        thoughts.finish()
        yield from reader.skip_space()


class ReasoningMeter:
    """Counts the tokens of one output's reasoning, marks included, each token by itself."""

    def __init__(self, form: ReasoningFormat, phase: Phase, token_text: Callable[[int], bytes]) -> None:
        """`token_text`: the bytes that a token adds to the text, of a hidden one none."""
        self._parser = ReasoningParser(form, phase, PlainParser())
        self._token_text = token_text
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_undecided = 0
        self._count = 0

    def add(self, token_id: int) -> None:
        """The next token."""
        if self._parser.phase is Phase.ANSWERING:
            return
        self._parser.feed(self._decoder.decode(self._token_text(token_id)))
        self._num_undecided += 1
        if self._parser.has_thought:
            self._count, self._num_undecided = self._count + self._num_undecided, 0

    @property
    def count(self) -> int:
        """Tokens of reasoning so far."""
        return self._count
