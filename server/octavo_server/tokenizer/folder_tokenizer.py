"""Loads the tokenizer of a Hugging Face folder: tokenizer.json with what tokenizer_config.json adds to it.

Which tokens stand around a text is tokenizer.json's word: like transformers 5, we do not read `add_bos_token` beside it.
A folder without tokenizer.json (SentencePiece's own format) is left to transformers, which takes longer to import than
the rest takes to load.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo_server.errors import StartupError
from octavo_server.models.location import read_json
from octavo_server.tokenizer.parts import NAMED_TOKENS, TokenizerParts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_OLDER_FILES = ("tokenizer.model", "vocab.json", "spiece.model")


def load_folder_tokenizer(folder: Path) -> TokenizerParts:
    """The tokenizer of `folder`.

    Raises:
        StartupError: ModelNotFound without tokenizer files, ModelInvalid for a damaged one.
    """
    config = _optional_json(folder / "tokenizer_config.json")
    named = {**_optional_json(folder / "special_tokens_map.json"), **config}
    special_tokens = {name: _text(named[name]) for name in NAMED_TOKENS if named.get(name) is not None}
    if (folder / "tokenizer.json").is_file():
        backend = _from_json(folder / "tokenizer.json")
        _add_tokens(backend, config, special_tokens, folder)
    else:
        backend, special_tokens = _by_transformers(folder)
    return TokenizerParts(
        backend=backend,
        special_tokens=special_tokens,
        chat_templates=_chat_templates(folder, config),
        origin=str(folder),
    )


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _from_json(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises plain Exception
        raise StartupError("ModelInvalid", f"{path} is damaged: {error}") from error
    # What a training script left on would cut or fill prompts here.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _add_tokens(backend: Tokenizer, config: Mapping[str, Any], special_tokens: Mapping[str, str], folder: Path) -> None:
    """Registers the tokens that tokenizer_config.json knows and tokenizer.json does not."""
    from tokenizers import AddedToken

    present = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = {int(token_id): entry for token_id, entry in (config.get("added_tokens_decoder") or {}).items()}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for token_id, entry in sorted(listed.items()):
        if entry["content"] in present:
            continue
        token = AddedToken(entry["content"], **{flag: bool(entry.get(flag, False)) for flag in flags})
        (backend.add_special_tokens if entry.get("special") else backend.add_tokens)([token])
        present.add(entry["content"])
        found = backend.token_to_id(entry["content"])
        if found != token_id:
            message = f"{folder / 'tokenizer_config.json'}: token {entry['content']!r} has id {token_id} there, {found}"
            raise StartupError("ModelInvalid", f"{message} in tokenizer.json")
    missing = [text for text in dict.fromkeys(special_tokens.values()) if text not in present]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in missing])


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` holds the files of one."""
    return any((folder / name).is_file() for name in ("tokenizer.json", *_OLDER_FILES))


def _by_transformers(folder: Path) -> tuple[Tokenizer, dict[str, str]]:
    if not has_tokenizer(folder):
        raise StartupError("ModelNotFound", f"{folder} holds neither tokenizer.json nor tokenizer.model")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise StartupError("ModelInvalid", f"{folder}: the tokenizer cannot be loaded: {error}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise StartupError("UnsupportedArchitecture", f"{folder}: {type(tokenizer).__name__} has no tokenizer.json")
    special = {name: str(text) for name, text in tokenizer.special_tokens_map.items() if name in NAMED_TOKENS}
    return tokenizer.backend_tokenizer, special


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """chat_template.jinja and what stands beside it come before the key in tokenizer_config.json."""
    templates: dict[str, str] = {}
    value = config.get("chat_template")
    if isinstance(value, str):
        templates["default"] = value
    elif isinstance(value, list):
        templates |= {str(item["name"]): str(item["template"]) for item in value}
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = path.read_text(encoding="utf-8")
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return templates


def _text(value: Any) -> str:
    """Named tokens are strings or objects that describe an added token."""
    return str(value["content"]) if isinstance(value, dict) else str(value)
