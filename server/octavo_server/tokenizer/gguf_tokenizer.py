"""Builds the tokenizer that a GGUF file describes.

Byte-level BPE is built here from the metadata, in a fraction of a second; transformers takes 8 s for the same file.
How a text is cut before merging is named by `tokenizer.ggml.pre`; the rules are llama.cpp's (llama-vocab.cpp), which
are those of the models' own tokenizers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo_server.errors import StartupError
from octavo_server.tokenizer.parts import TokenizerParts

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

    from octavo_server.models.gguf_file import GGUFFile

_CONTROL = 3
_USER_DEFINED = 4

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# `tokenizer.ggml.pre` -> the patterns that cut a text, each applied to the pieces of the one before.
_SPLITS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "gpt2": (_GPT2,),
    "olmo": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "starcoder": (r"\p{N}", _GPT2),
    "refact": (r"\p{N}", _GPT2),
    "command-r": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "falcon3": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "tekken": (_TEKKEN,),
}
# Vocabularies with tokens that no merge makes, taken whole where a piece equals one; they also begin with BOS.
_WHOLE_PIECES = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3", "tekken"})
_NAMED_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def load_gguf_tokenizer(file: GGUFFile) -> TokenizerParts:
    """The tokenizer of `file`.

    Raises:
        StartupError: ModelInvalid without a vocabulary; UnsupportedArchitecture for an unknown kind of one.
    """
    kind = file.metadata.get("tokenizer.ggml.model")
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if kind is None or not tokens:
        raise StartupError("ModelInvalid", f"{file.path} holds no tokenizer (tokenizer.ggml.model, …tokens)")
    special_tokens = {}
    for name, key in _NAMED_IDS.items():
        token_id = file.metadata.get(f"tokenizer.ggml.{key}")
        if token_id is not None and token_id < len(tokens):
            special_tokens[name] = tokens[token_id]
    backend = _byte_level(file, special_tokens) if kind == "gpt2" else _by_transformers(file)
    return TokenizerParts(
        backend=backend, special_tokens=special_tokens, chat_templates=_chat_templates(file), origin=str(file.path)
    )


def _byte_level(file: GGUFFile, special_tokens: dict[str, str]) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.decoders import ByteLevel
    from tokenizers.models import BPE

    def value(key: str, default: Any = None) -> Any:
        return file.metadata.get(f"tokenizer.ggml.{key}", default)

    pre, tokens = value("pre", "default"), value("tokens")
    if pre not in _SPLITS:
        known = ", ".join(sorted(_SPLITS))
        message = f"{file.path}: tokenizer.ggml.pre is {pre!r}; supported are {known}"
        raise StartupError("UnsupportedArchitecture", message)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in value("merges", [])]
    backend = Tokenizer(BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in _WHOLE_PIECES))
    backend.pre_tokenizer = _pre_tokenizer(_SPLITS[pre])
    backend.decoder = ByteLevel()
    kinds = list(zip(tokens, value("token_type", []), strict=False))
    control = dict.fromkeys([token for token, kind in kinds if kind == _CONTROL] + list(special_tokens.values()))
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    backend.add_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == _USER_DEFINED])
    bos = special_tokens.get("bos_token") if value("add_bos_token", pre in _WHOLE_PIECES) else None
    eos = special_tokens.get("eos_token") if value("add_eos_token", False) else None
    _set_added_ends(backend, bos, eos)
    return backend


def _pre_tokenizer(patterns: tuple[str, ...]) -> PreTokenizer:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    splits: list[PreTokenizer] = [Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])


def _set_added_ends(backend: Tokenizer, bos: str | None, eos: str | None) -> None:
    """Makes `encode` put these tokens around a text when special tokens are asked for; None: none."""
    from tokenizers.processors import TemplateProcessing

    names = [name for name in (bos, eos) if name is not None]
    single = " ".join([*([bos] if bos else []), "$A", *([eos] if eos else [])])
    backend.post_processor = TemplateProcessing(
        single=single,
        pair=f"{single} $B",
        special_tokens=[(name, backend.token_to_id(name)) for name in dict.fromkeys(names)],
    )


def _by_transformers(file: GGUFFile) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.path.parent), gguf_file=file.path.name)
    except (ValueError, KeyError, OSError) as error:
        kind = file.metadata.get("tokenizer.ggml.model")
        message = f"{file.path}: a tokenizer of kind {kind!r} cannot be built: {error}"
        raise StartupError("UnsupportedArchitecture", message) from error
    backend: Tokenizer = tokenizer.backend_tokenizer
    return backend


def _chat_templates(file: GGUFFile) -> dict[str, str]:
    prefix = "tokenizer.chat_template"
    named = {
        key.removeprefix(prefix).removeprefix(".") or "default": source
        for key, source in file.metadata.items()
        if key == prefix or key.startswith(f"{prefix}.")
    }
    return {name: source for name, source in named.items() if isinstance(source, str)}
