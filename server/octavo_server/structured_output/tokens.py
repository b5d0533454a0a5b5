"""A model's vocabulary as llguidance takes it: plain values, which may travel to another process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from octavo_server.tokenizer.tokenizer import Tokenizer

Encode = Callable[[bytes], list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarTokens:
    """The bytes of each token and what the special ones are."""

    tokens: list[bytes]
    """By id. Ids that the model has beyond the tokenizer's stand for no bytes, and are never allowed."""
    bos_token_id: int | None
    eos_token_ids: list[int]
    special_token_ids: list[int]
    special_ids_by_text: dict[str, int]
    """Tokens that only their id can name, such as "</think>" where it is one."""


def grammar_tokens(tokenizer: Tokenizer, vocab_size: int, eos_token_ids: tuple[int, ...]) -> GrammarTokens:
    """Takes a tenth of a second for 49,152 tokens."""
    return GrammarTokens(
        tokens=[tokenizer.token_bytes(token_id) for token_id in range(vocab_size)],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_ids=list(eos_token_ids),
        special_token_ids=sorted({*tokenizer.special_token_ids, *eos_token_ids}),
        special_ids_by_text=dict(tokenizer.special_ids_by_text),
    )


def make_table(tokens: GrammarTokens, encode: Encode) -> LLTokenizer:
    """The table as llguidance holds it; `encode` spells a text that a grammar forces."""
    from llguidance import LLTokenizer

    wrapper: Any = _Wrapper(tokens, encode)
    return LLTokenizer(wrapper, eos_token=tokens.eos_token_ids)


def spell_bytewise(tokens: list[bytes]) -> Encode:
    """An `encode` without a tokenizer: one token a byte, which is right wherever any spelling is."""
    ids = {token: token_id for token_id, token in reversed(list(enumerate(tokens))) if len(token) == 1}
    return lambda text: [ids[text[at : at + 1]] for at in range(len(text)) if text[at : at + 1] in ids]


class _Wrapper:
    """The vocabulary under the names that llguidance asks for."""

    is_tokenizer_wrapper = True

    def __init__(self, tokens: GrammarTokens, encode: Encode) -> None:
        self.tokens = tokens.tokens
        self.eos_token_id = tokens.eos_token_ids[0]
        self.bos_token_id = tokens.bos_token_id
        self.special_token_ids = tokens.special_token_ids
        self._encode = encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.encode() if isinstance(text, str) else text)
