"""What a request's parameters need of the tokenizer, worked out where its client can still be told.

The engine gets the results as plain values of `Request`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo_server.errors import InvalidRequestError

if TYPE_CHECKING:
    from octavo_server.engine.request import SamplingParams
    from octavo_server.engine.served_model import ServedModel
    from octavo_server.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TextParams:
    """Fields of `Request` of the same names."""

    grammar: str | None = None
    bad_token_ids: tuple[tuple[int, ...], ...] = ()


def resolve_text_params(params: SamplingParams, model: ServedModel) -> TextParams:
    """Compiles the grammar and encodes the bad words; takes milliseconds where there are such.

    Raises:
        InvalidRequestError: the grammar does not compile, or a word stands for no token.
    """
    structured = params.structured_outputs
    return TextParams(
        grammar=None if structured is None else model.grammars.compile(structured),
        bad_token_ids=tuple(ids for word in params.bad_words for ids in _spellings(word, model.tokenizer)),
    )


def _spellings(word: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The word's tokens, and, as in vLLM, those of the word at the beginning of a word, where they are as many."""
    bare = tuple(tokenizer.encode(word.lstrip(), add_special_tokens=False))
    if not bare:
        raise InvalidRequestError(f"bad_words holds {word[:50]!r}, which is no text; leave it out", param="bad_words")
    spaced = tuple(tokenizer.encode(" " + word.lstrip(), add_special_tokens=False))
    differs = spaced[0] != bare[0] and len(spaced) == len(bare)
    return [bare, spaced] if differs else [bare]
