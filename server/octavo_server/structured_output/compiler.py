"""Compiles grammars for one model's tokens, and walks through them token by token.

A grammar is compiled where its client can still be told what is wrong with it, and again, from the cache or in about a
millisecond, where the engine runs. A state never raises: what goes wrong while it walks (a grammar that becomes too
complex) is told by `error`, and ends that one output.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from octavo_server.errors import InvalidRequestError
from octavo_server.structured_output.grammar import grammar_text

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from octavo_server.structured_output.params import StructuredOutputsParams
    from octavo_server.tokenizer.tokenizer import Tokenizer

MAX_CACHED = 64
"""Compiled grammars that are kept for the next request with the same text."""
MAX_LEXER_STATES = 50_000
"""Of 1 to 2 kB each: what a hostile expression may take."""
MAX_MESSAGE_CHARS = 400


class GrammarState:
    """Where one output is in its grammar. One owner."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allowed_tokens(self) -> bytes | None:
        """One bit a token of the vocabulary, the lowest bit of a byte first, in whole words of 32; None after an error.

        Where the output may end, the tokens that end it are among them; where it must, they alone.
        """
        mask: bytes = self._matcher.compute_bitmask()
        return None if self._matcher.is_error() else mask

    def accept(self, token_id: int) -> bool:
        """Takes the token that was chosen; False where the grammar has no place for it."""
        return bool(self._matcher.consume_token(token_id))

    @property
    def error(self) -> str:
        """Why the grammar cannot go on; empty where nothing is wrong."""
        return _bounded(self._matcher.get_error())


class GrammarCompiler:
    """Owns the table of the model's tokens, made at the first use, and the cache. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(token_id for token_id in eos_token_ids if token_id < vocab_size)
        self._lock = threading.Lock()
        self._tokens: LLTokenizer | None = None
        self._cache: OrderedDict[str, LLMatcher] = OrderedDict()

    def compile(self, params: StructuredOutputsParams) -> str:
        """The text of the grammar, which has been seen to compile.

        Raises:
            InvalidRequestError: it does not, with llguidance's reason.
        """
        if not self._eos_token_ids:
            raise InvalidRequestError(
                "structured_outputs needs a model with a token that ends its output, and this one names none",
                param="structured_outputs",
            )
        text = grammar_text(params, self._tokenizer.special_ids_by_text)
        matcher = self._prototype(text)
        if matcher.is_error():
            message = f"structured_outputs cannot be compiled: {_bounded(matcher.get_error())}"
            raise InvalidRequestError(message, param="structured_outputs")
        return text

    def start(self, text: str) -> GrammarState:
        """The beginning of an output that follows the grammar `text`."""
        return GrammarState(self._prototype(text).deep_copy())

    def warm_up(self) -> None:
        """Makes the table of tokens: a second for a large vocabulary, which no stream should wait for."""
        with self._lock:
            self._table()

    def _prototype(self, text: str) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        with self._lock:
            found = self._cache.pop(text, None)
            if found is None:
                limits = LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
                found = LLMatcher(self._table(), text, log_level=0, limits=limits)
            if not found.is_error():
                self._cache[text] = found
            if len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
            return found

    def _table(self) -> LLTokenizer:
        if self._tokens is None:
            from llguidance import LLTokenizer

            table: Any = _Vocabulary(self._tokenizer, self._vocab_size, self._eos_token_ids)
            self._tokens = LLTokenizer(table, eos_token=list(self._eos_token_ids))
        return self._tokens


class _Vocabulary:
    """The tokenizer as llguidance asks for it."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos_token_ids[0]
        self.bos_token_id = tokenizer.bos_token_id
        # Ids that the model has beyond the tokenizer's stand for no bytes, and are never allowed.
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(vocab_size)]
        self.special_token_ids = sorted({*tokenizer.special_token_ids, *eos_token_ids})

    def __call__(self, text: bytes | str) -> list[int]:
        given = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(given, add_special_tokens=False)


def _bounded(message: str) -> str:
    """On one line, without the echo of the grammar that follows a parse error's first lines."""
    text = " ".join(message.split())
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 1] + "…"
