"""Compiles grammars for one model's tokens, and walks through them token by token.

A grammar is tried, in a process of its own, where its client can still be told what is wrong with it, and compiled, from
the cache or in about a millisecond, where the engine runs. A state never raises: what goes wrong while it walks (a
grammar that becomes too complex) is told by `error`, and ends that one output.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo_server.errors import InvalidRequestError
from octavo_server.structured_output.grammar import check_shape
from octavo_server.structured_output.matching import MAX_LEXER_STATES, new_matcher, reason_of
from octavo_server.structured_output.params import STRUCTURED_OUTPUTS
from octavo_server.structured_output.tokens import GrammarTokens, grammar_tokens, make_table
from octavo_server.structured_output.trial_process import TrialProcess

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from octavo_server.structured_output.params import StructuredOutputsParams
    from octavo_server.structured_output.tokens import Encode
    from octavo_server.tokenizer.tokenizer import Tokenizer

MAX_CACHED = 64
"""Compiled grammars that are kept for the next request with the same text."""
MAX_CACHED_COMPILE_S = 2.0
"""Of processor time that went into all of them: what takes long takes memory, up to 400 MB a second."""
MAX_RENEWAL_S = 0.05
"""A grammar that took longer is not compiled again within an output."""
MAX_RENEWALS = 8
NUM_THREADS = 4


@dataclass(slots=True, kw_only=True, eq=False)
class CompiledGrammar:
    """A matcher that nobody moves, and what was made of it."""

    matcher: LLMatcher
    compile_s: float
    num_copies: int = 0

    def copy(self) -> LLMatcher:
        """A matcher that one output moves; what both learn is shared."""
        self.num_copies += 1
        return self.matcher.deep_copy()


class GrammarState:
    """Where one output is in its grammar. One owner.

    Outputs of one grammar share what its lexer has learnt, and a bound on that: an output that fails may have failed at
    what others used up. It then goes on with a grammar that is compiled anew.
    """

    def __init__(self, compiler: GrammarCompiler, text: str) -> None:
        self._compiler = compiler
        self._text = text
        self._compiled = compiler.compiled(text)
        self._matcher = self._compiled.copy()
        self._taken: list[int] = []
        self._num_renewals = 0

    def allowed_tokens(self) -> bytes | None:
        """One bit a token of the vocabulary, the lowest bit of a byte first, in whole words of 32; None after an error.

        Where the output may end, the tokens that end it are among them; where it must, they alone.
        """
        mask: bytes = self._matcher.compute_bitmask()
        while self._matcher.is_error():
            if not self._renew():
                return None
            mask = self._matcher.compute_bitmask()
        return mask

    def accept(self, token_id: int) -> bool:
        """Takes the token that was chosen; False where the grammar has no place for it."""
        while not self._matcher.consume_token(token_id):
            if not self._renew():
                return False
        self._taken.append(token_id)
        return True

    @property
    def error(self) -> str:
        """Why the grammar cannot go on; empty where nothing is wrong."""
        return reason_of(self._matcher)

    def _renew(self) -> bool:
        """Goes on with a fresh grammar where that may help."""
        fresh = self._compiler.renewed(self._text, self._compiled) if self._num_renewals < MAX_RENEWALS else None
        if fresh is None:
            return False
        self._num_renewals += 1
        self._compiled = fresh
        self._matcher = fresh.copy()
        return not self._taken or bool(self._matcher.consume_tokens(self._taken))


class GrammarCompiler:
    """Owns the table of the model's tokens, made at the first use, the cache, and the process that tries grammars.

    Safe to use from several threads.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        max_lexer_states: int = MAX_LEXER_STATES,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(token_id for token_id in eos_token_ids if token_id < vocab_size)
        self._max_lexer_states = max_lexer_states
        self._trial = TrialProcess()
        self.threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="octavo-grammar")
        """For callers that must not wait: apart from others, which so do not wait for a grammar."""
        self._table_lock = threading.Lock()
        self._tokens: GrammarTokens | None = None
        self._table: LLTokenizer | None = None
        self._cache_lock = threading.Lock()
        self._texts: OrderedDict[StructuredOutputsParams, str] = OrderedDict()
        self._cache: OrderedDict[str, CompiledGrammar] = OrderedDict()

    def compile(self, params: StructuredOutputsParams) -> str:
        """The text of the grammar, which has been seen to compile. May take a second.

        Raises:
            InvalidRequestError: it does not, with llguidance's reason.
        """
        if not self._eos_token_ids:
            raise InvalidRequestError(
                f"{STRUCTURED_OUTPUTS} needs a model with a token that ends its output, and this one names none",
                param=STRUCTURED_OUTPUTS,
            )
        check_shape(params)
        text = self._known_text(params)
        if text is None:
            text = self._trial.run(params, self.warm_up()[0])
            with self._cache_lock:
                self._texts[params] = text
                if len(self._texts) > MAX_CACHED:
                    self._texts.popitem(last=False)
        self.compiled(text)
        return text

    def start(self, text: str) -> GrammarState:
        """The beginning of an output that follows the grammar `text`."""
        return GrammarState(self, text)

    def compiled(self, text: str) -> CompiledGrammar:
        """The grammar `text` in the cache, compiled where it is not there."""
        with self._cache_lock:
            found = self._cache.get(text)
            if found is not None:
                self._cache.move_to_end(text)
                return found
        return self._compile_anew(text)

    def renewed(self, text: str, stale: CompiledGrammar) -> CompiledGrammar | None:
        """The grammar `text` in place of one whose bounds are used up; None where another would fail as well."""
        with self._cache_lock:
            found = self._cache.get(text)
            if found is stale:
                del self._cache[text]
            elif found is not None:
                return found
        # What fails for its first output fails by itself.
        if stale.num_copies <= 1 or stale.compile_s > MAX_RENEWAL_S:
            return None
        return self._compile_anew(text)

    def warm_up(self) -> tuple[GrammarTokens, LLTokenizer]:
        """The table of tokens: a second for a large vocabulary, which no stream should wait for."""
        with self._table_lock:
            if self._tokens is None or self._table is None:
                self._tokens = grammar_tokens(self._tokenizer, self._vocab_size, self._eos_token_ids)
                self._table = make_table(self._tokens, _encoder(self._tokenizer))
            return self._tokens, self._table

    def _known_text(self, params: StructuredOutputsParams) -> str | None:
        with self._cache_lock:
            text = self._texts.get(params)
            if text is not None:
                self._texts.move_to_end(params)
            return text

    def _compile_anew(self, text: str) -> CompiledGrammar:
        table = self.warm_up()[1]
        began = time.thread_time()
        matcher = new_matcher(table, text, self._max_lexer_states)
        made = CompiledGrammar(matcher=matcher, compile_s=time.thread_time() - began)
        if not matcher.is_error():
            with self._cache_lock:
                self._cache[text] = made
                self._cache.move_to_end(text)
                self._trim()
        return made

    def _trim(self) -> None:
        total_s = sum(item.compile_s for item in self._cache.values())
        while len(self._cache) > MAX_CACHED or (total_s > MAX_CACHED_COMPILE_S and len(self._cache) > 1):
            _, dropped = self._cache.popitem(last=False)
            total_s -= dropped.compile_s


def _encoder(tokenizer: Tokenizer) -> Encode:
    # No method: what llguidance holds, Python's garbage collector does not see.
    return lambda text: tokenizer.encode(text.decode("utf-8", "replace"), add_special_tokens=False)
