"""Turns a sequence's token ids into text as they come, and finds stop strings in it.

What must never leave: half a UTF-8 character, or text that may turn out to be the beginning of a stop string.
Invariant: however the token ids are split over calls of `append`, the joined text, and the token at which a stop string
is found, are the same. To hold it, of several stop strings the one that is complete first wins; of those complete at
the same character, the longest.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class TokenTable(Protocol):
    """What the detokenizer needs of a tokenizer."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token stands for in running text; of a special token its literal text."""

    def is_special(self, token_id: int) -> bool:
        """Whether `skip_special_tokens` hides it."""


def is_hidden(token_id: int, tokens: TokenTable, shown_special_ids: Collection[int]) -> bool:
    """Whether `skip_special_tokens` keeps the token out of the text."""
    return tokens.is_special(token_id) and token_id not in shown_special_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """What one call of `append` released."""

    text: str
    num_tokens: int
    """Tokens that count: up to and including the one that completed a stop string."""
    stop: str | None = None
    """The stop string that was found; the sequence is over."""


class Detokenizer:
    """The text of one sequence. Owns the bytes of an unfinished character and the text held back for stop strings."""

    def __init__(
        self,
        tokens: TokenTable,
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        shown_special_ids: Collection[int] = (),
        min_tokens: int = 0,
    ) -> None:
        self._tokens = tokens
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._skip_special = skip_special_tokens
        self._shown_special = frozenset(shown_special_ids)
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def append(self, token_ids: Sequence[int]) -> TextDelta:
        """Takes the next tokens and releases what is certain."""
        released = ""
        for count, token_id in enumerate(token_ids, start=1):
            self._num_tokens += 1
            self._held += self._decode(token_id)
            if not self._stop:
                continue
            if self._num_tokens <= self._min_tokens:
                # As vLLM: text that min_tokens demanded neither stops nor is held back.
                released, self._held = released + self._held, ""
                continue
            found = self._find_stop()
            if found is not None:
                end, stop = found
                released += self._held[: end if self._include_stop else end - len(stop)]
                self._held = ""
                return TextDelta(text=released, num_tokens=count, stop=stop)
            keep = self._possible_stop_length()
            cut = len(self._held) - keep
            released, self._held = released + self._held[:cut], self._held[cut:]
        if not self._stop:
            released, self._held = self._held, ""
        return TextDelta(text=released, num_tokens=len(token_ids))

    def finish(self) -> str:
        """The text that was held back, once no token can come any more; the bytes of half a character are dropped."""
        rest, self._held = self._held, ""
        return rest

    def _decode(self, token_id: int) -> str:
        if self._skip_special and is_hidden(token_id, self._tokens, self._shown_special):
            return ""
        return self._decoder.decode(self._tokens.token_bytes(token_id))

    def _find_stop(self) -> tuple[int, str] | None:
        ends = [(at + len(stop), -len(stop), stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if not ends:
            return None
        end, _, stop = min(ends)
        return end, stop

    def _possible_stop_length(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max(len(stop) for stop in self._stop) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
