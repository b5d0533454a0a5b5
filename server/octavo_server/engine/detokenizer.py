"""Turns a sequence's token ids into text as they come, and finds stop strings in it.

What must never leave: half a UTF-8 character, or text that may turn out to be the beginning of a stop string. A token
is released as a whole, so that what was released of tokens and of text agrees at every moment.
Invariant: however the token ids are split over calls of `append`, the joined text, and the token at which a stop string
is found, are the same. To hold it, of several stop strings the one that is complete first wins; of those complete at
the same character, the longest.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, NamedTuple, Protocol

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


class TextDelta(NamedTuple):
    """What one call of `append` released."""

    text: str
    num_held_tokens: int = 0
    """Of all tokens so far, the last ones that the text does not show yet; where `stop` is set it never will."""
    num_hidden_bytes: int = 0
    """Bytes that `stop` cut off the last token before those."""
    stop: str | None = None
    """The stop string that was found; the sequence is over."""


class _Place(NamedTuple):
    """Where a token's text is in the held text."""

    start: int
    end: int
    token_id: int
    unfinished: bytes
    """At the token's end: of a character that the next one goes on with."""


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
        self._num_demanded = 0  # Of the held characters, the first ones that min_tokens keeps stop strings out of
        # Kept only where a stop string may hold any
        self._places: list[_Place] = []

    def append(self, token_ids: Sequence[int]) -> TextDelta:
        """Takes the next tokens and releases what is certain."""
        if not self._stop:
            return TextDelta("".join([self._decode(token_id) for token_id in token_ids]))
        released = ""
        for count, token_id in enumerate(token_ids, start=1):
            self._num_tokens += 1
            start = len(self._held)
            self._held += self._decode(token_id)
            self._places.append(_Place(start, len(self._held), token_id, self._decoder.getstate()[0]))
            if self._num_tokens <= self._min_tokens:
                # As vLLM: text that min_tokens demanded does not stop; it waits for nothing but whole characters.
                self._num_demanded = len(self._held)
                released += self._release(len(self._held))
                continue
            found = self._find_stop()
            if found is not None:
                end, stop = found
                return self._stopped(released, end if self._include_stop else end - len(stop), stop, token_ids[count:])
            released += self._release(len(self._held) - self._possible_stop_length())
        return TextDelta(text=released, num_held_tokens=len(self._places))

    def finish(self) -> str:
        """The text that was held back, once no token can come any more; the bytes of half a character are dropped."""
        rest, self._held = self._held, ""
        return rest

    def _decode(self, token_id: int) -> str:
        if self._skip_special and is_hidden(token_id, self._tokens, self._shown_special):
            return ""
        return self._decoder.decode(self._tokens.token_bytes(token_id))

    def _release(self, num_certain: int) -> str:
        """Lets the tokens go that are among the first `num_certain` characters."""
        count = sum(place.end <= num_certain for place in self._places)
        while count and self._places[count - 1].unfinished:
            count -= 1
        kept = self._places[count:]
        cut = kept[0].start if kept else num_certain
        self._places = [place._replace(start=place.start - cut, end=place.end - cut) for place in kept]
        self._num_demanded = max(0, self._num_demanded - cut)
        released, self._held = self._held[:cut], self._held[cut:]
        return released

    def _stopped(self, released: str, cut: int, stop: str, rest: Sequence[int]) -> TextDelta:
        """The last delta: `cut` characters of the held text are shown, the tokens in `rest` came too late."""
        shown = [place for place in self._places if place.start < cut]
        num_held = len(self._places) - len(shown) + len(rest)
        num_hidden = 0
        if shown:
            last = shown[-1]
            num_hidden = _num_last_bytes(
                self._tokens.token_bytes(last.token_id), self._held[cut : last.end], last.unfinished
            )
        text, self._held = released + self._held[:cut], ""
        return TextDelta(text=text, num_held_tokens=num_held, num_hidden_bytes=num_hidden, stop=stop)

    def _find_stop(self) -> tuple[int, str] | None:
        places = [(self._held.find(stop, self._num_demanded), stop) for stop in self._stop]
        ends = [(at + len(stop), -len(stop), stop) for at, stop in places if at >= 0]
        if not ends:
            return None
        end, _, stop = min(ends)
        return end, stop

    def _possible_stop_length(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max(len(stop) for stop in self._stop) - 1
        for length in range(min(longest, len(self._held) - self._num_demanded), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0


def _num_last_bytes(raw: bytes, text: str, unfinished: bytes) -> int:
    """How many of the token's last bytes are `text` and the unfinished character behind it."""
    # Not the length of its bytes alone: the sign that stands for a broken character has three, what it stands for 1 to 3.
    longest = len(text.encode("utf-8", "replace")) + len(unfinished)
    for count in range(min(longest, len(raw)), 0, -1):
        # An unfinished character has no text for this decoder
        if codecs.getincrementaldecoder("utf-8")(errors="replace").decode(raw[len(raw) - count :]) == text:
            return count
    return 0
