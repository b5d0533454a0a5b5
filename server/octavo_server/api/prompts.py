"""From a client's text to token ids, on a thread: bounded before time and memory go into what cannot fit.

A tokenizer takes a second and some 300 MB a million tokens, and nothing can end it halfway. So a text that may be longer
than is allowed is counted in pieces first, and of one that is to be cut no more is read than its end needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo_server.errors import InvalidRequestError

if TYPE_CHECKING:
    from octavo_server.engine.served_model import ServedModel
    from octavo_server.tokenizer.tokenizer import Tokenizer

USUAL_TOKEN_CHARS = 8
"""Twice what a token of most texts has: what is shorter than so many for each allowed token is encoded at once."""
PIECE_CHARS = 2**18
"""Of what is counted in pieces, a piece: 100 MB of tokens where each character is one."""
MAX_UNCOUNTED_CHARS = 2**20
CUT_MARGIN_TOKENS = 64
"""As many tokens next to a cut may be others than in the whole text."""


def encode_prompt(
    loaded: ServedModel, text: str, *, add_special_tokens: bool, keep: int | None = None, name: str = "prompt"
) -> list[int]:
    """Token ids of a prompt that the context can hold, or the last `keep` of any.

    Raises:
        InvalidRequestError: it is longer than the context; `name` is what its client calls it.
    """
    if keep is not None:
        return _encode_end(loaded.tokenizer, text, keep, add_special_tokens=add_special_tokens)
    limit = loaded.limits.max_sequence_tokens
    return encode_bounded(
        loaded.tokenizer,
        text,
        limit,
        add_special_tokens=add_special_tokens,
        name=name,
        remedy=f"the context holds {limit:,}; shorten it, set truncate_prompt_tokens, or raise --max-model-len",
    )


def encode_bounded(
    tokenizer: Tokenizer, text: str, limit: int, *, add_special_tokens: bool, name: str, remedy: str
) -> list[int]:
    """Token ids of a text, which may still be a few more than `limit`.

    Raises:
        InvalidRequestError: they are surely more.
    """
    shown = "the prompt" if name == "prompt" else name
    if len(text) > limit * tokenizer.max_token_chars:
        raise InvalidRequestError(
            f"{shown} has {len(text):,} characters, of which a token has at most {tokenizer.max_token_chars:,}; {remedy}",
            param=name,
        )
    if len(text) > min(limit * USUAL_TOKEN_CHARS, MAX_UNCOUNTED_CHARS):
        size, count = min(limit * USUAL_TOKEN_CHARS, PIECE_CHARS), 0
        for start in range(0, len(text), size):
            piece = tokenizer.encode(text[start : start + size], add_special_tokens=False)
            count += max(0, len(piece) - CUT_MARGIN_TOKENS)
            if count > limit:
                raise InvalidRequestError(f"{shown} has more than {count:,} tokens; {remedy}", param=name)
    return tokenizer.encode(text, add_special_tokens=add_special_tokens)


def _encode_end(tokenizer: Tokenizer, text: str, keep: int, *, add_special_tokens: bool) -> list[int]:
    """The last `keep` token ids of a text."""
    size = (keep + CUT_MARGIN_TOKENS) * USUAL_TOKEN_CHARS
    while True:
        ids = tokenizer.encode(text[-size:], add_special_tokens=add_special_tokens)
        # What a cut changes is the tokens next to it, and those are dropped.
        if len(ids) >= keep + CUT_MARGIN_TOKENS or size >= len(text):
            return ids[-keep:]
        size *= 2
