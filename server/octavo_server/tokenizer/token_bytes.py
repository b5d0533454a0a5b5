"""Which bytes a token of a vocabulary stands for, in the two spellings that vocabularies use.

byte-level (GPT-2)      each byte is one printable character: "Ġhello" is b" hello"
byte fallback (Llama 2) "▁" is a space, "<0x0A>" is one byte, everything else is itself
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


def byte_alphabet() -> dict[str, int]:
    """Character -> byte of the byte-level spelling: printable Latin-1 is itself, the others follow from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


class TokenBytes:
    """Looks up once, remembers for good: bounded by the vocabulary."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        # Ids may leave gaps, so the table is as long as the highest one.
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self._table: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
        self._added = {token_id: token.content for token_id, token in backend.get_added_tokens_decoder().items()}
        self._alphabet = byte_alphabet() if "ByteLevel" in _decoder_kinds(backend) else None

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, token_id: int) -> bytes:
        """Empty for an id that the vocabulary does not have; models pad theirs."""
        if not 0 <= token_id < len(self._table):
            return b""
        found = self._table[token_id]
        if found is None:
            found = self._table[token_id] = self._spell_out(token_id)
        return found

    def _spell_out(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if self._alphabet is not None:
            values = [self._alphabet.get(character) for character in token]
            return token.encode() if None in values else bytes(value for value in values if value is not None)
        match = _BYTE_TOKEN.match(token)
        return bytes([int(match[1], 16)]) if match else token.replace("▁", " ").encode()


def _decoder_kinds(backend: Tokenizer) -> set[str]:
    if backend.decoder is None:
        return set()
    state: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    return {state["type"], *(item["type"] for item in state.get("decoders", ()))}
