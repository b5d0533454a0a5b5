"""How llguidance is asked: with bounds on what one grammar may take while it is followed, and answers of bounded size."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_LEXER_STATES = 50_000
"""Of 1 to 2 kB each, shared by all outputs of a grammar: what a hostile expression may take."""
MAX_MESSAGE_CHARS = 400


def new_matcher(table: LLTokenizer, text: str, max_lexer_states: int = MAX_LEXER_STATES) -> LLMatcher:
    """Compiles the grammar `text`; one that does not compile is a matcher that says so."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(max_lexer_states=max_lexer_states, verbose_errors=False)
    return LLMatcher(table, text, log_level=0, limits=limits)


def allowed_ids(mask: bytes) -> list[int]:
    """The ids whose bit is set, rising; the lowest bit of a byte is the first."""
    return [8 * at + bit for at, byte in enumerate(mask) if byte for bit in range(8) if byte >> bit & 1]


def reason_of(matcher: LLMatcher) -> str:
    """Why the matcher cannot go on; empty where nothing is wrong."""
    reason: str = matcher.get_error().replace("<non-verbose/>", "")
    return "no text matches it" if reason.startswith("NoExtension") else bounded(reason)


def bounded(message: str) -> str:
    """On one line, without the echo of the grammar that follows a parse error's first lines."""
    text = " ".join(message.split())
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 1] + "…"
