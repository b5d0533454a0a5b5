"""A tokenizer for models that come without one: each byte is a token. It lets `--load-format dummy` run on a configuration alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo_server.tokenizer.parts import TokenizerParts

if TYPE_CHECKING:
    from pathlib import Path


def byte_tokenizer(folder: Path) -> TokenizerParts:
    """256 tokens and no chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return TokenizerParts(backend=backend, special_tokens={}, chat_templates={}, origin=str(folder))
