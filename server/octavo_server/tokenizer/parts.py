"""What every way of loading a tokenizer gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerParts:
    """A backend and what the files say beside it."""

    backend: Tokenizer
    special_tokens: Mapping[str, str]
    """NAMED_TOKENS that the model has -> their text; variables of chat templates."""
    chat_templates: Mapping[str, str]
    """Name -> Jinja source; empty where the model has none."""
    origin: str
    """The folder or file, for messages."""
