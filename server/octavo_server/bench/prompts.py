"""Random prompts that a server cannot have seen: the same for the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_VOCABULARY = 5000

Prompt = str | list[int]


class RandomText:
    """Words of two to six letters, or token ids below `vocab_size`."""

    def __init__(self, rng: random.Random, vocab_size: int | None) -> None:
        self._rng = rng
        self._vocab_size = vocab_size
        self._words = (
            ["".join(rng.choices(_LETTERS, k=rng.randint(2, 6))) for _ in range(_VOCABULARY)]
            if vocab_size is None
            else []
        )

    def piece(self, count: int) -> Prompt:
        """`count` of them."""
        if self._vocab_size is None:
            return " ".join(self._rng.choices(self._words, k=count))
        # Low ids are special tokens in most vocabularies.
        low = min(10, self._vocab_size - 1)
        return [self._rng.randrange(low, self._vocab_size) for _ in range(count)]

    def join(self, first: Prompt, second: Prompt) -> Prompt:
        """One after the other; both of the same kind."""
        if isinstance(first, str) and isinstance(second, str):
            return f"{first} {second}" if first and second else first + second
        assert isinstance(first, list)
        assert isinstance(second, list)
        return first + second


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptShape:
    """How long prompts are and what they share."""

    num_tokens: int
    """Words, or token ids where `vocab_size` is given."""
    shared_prefix: int = 0
    """Of these, how many are the same in all prompts."""
    vocab_size: int | None = None
    """Send lists of ids below this instead of words: exact lengths, completions only."""


def make_prompts(shape: PromptShape, count: int, seed: int) -> list[Prompt]:
    """`count` prompts."""
    text = RandomText(random.Random(seed), shape.vocab_size)
    shared = min(shape.shared_prefix, shape.num_tokens)
    prefix = text.piece(shared)
    return [text.join(prefix, text.piece(shape.num_tokens - shared)) for _ in range(count)]
