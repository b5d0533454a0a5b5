"""How often each token stands in an output, kept up token by token: penalties need it at each step, however long it is."""

from __future__ import annotations

from array import array
from collections.abc import Iterable


class TokenCounts:
    """The distinct tokens of a prompt and its output, and how often each is in the output. As arrays, which numpy copies."""

    def __init__(self, prompt: Iterable[int]) -> None:
        self.token_ids = array("q", dict.fromkeys(prompt))
        """[num_distinct] int64, in the order of their first places."""
        self.counts = array("q", bytes(8 * len(self.token_ids)))
        """[num_distinct] int64, 0 for a token of the prompt alone."""
        self._places = {token_id: place for place, token_id in enumerate(self.token_ids)}

    def add(self, token_id: int) -> None:
        """Of the output."""
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self.token_ids):
            self.token_ids.append(token_id)
            self.counts.append(0)
        self.counts[place] += 1
