"""Random prompts that a server cannot have seen: the same for the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_VOCABULARY = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptShape:
    """How long prompts are and what they share."""

    num_tokens: int
    """Words, or token ids where `vocab_size` is given."""
    shared_prefix: int = 0
    """Of these, how many are the same in all prompts."""
    vocab_size: int | None = None
    """Send lists of ids below this instead of words: exact lengths, completions only."""


def make_prompts(shape: PromptShape, count: int, seed: int) -> list[str | list[int]]:
    """`count` prompts."""
    rng = random.Random(seed)
    shared = min(shape.shared_prefix, shape.num_tokens)
    if shape.vocab_size is not None:
        prefix_ids = [_token(rng, shape.vocab_size) for _ in range(shared)]
        rest = shape.num_tokens - shared
        return [prefix_ids + [_token(rng, shape.vocab_size) for _ in range(rest)] for _ in range(count)]
    words = ["".join(rng.choices(_LETTERS, k=rng.randint(2, 6))) for _ in range(_VOCABULARY)]
    prefix = rng.choices(words, k=shared)
    return [" ".join(prefix + rng.choices(words, k=shape.num_tokens - shared)) for _ in range(count)]


def _token(rng: random.Random, vocab_size: int) -> int:
    # Low ids are special tokens in most vocabularies.
    return rng.randrange(min(10, vocab_size - 1), vocab_size)
