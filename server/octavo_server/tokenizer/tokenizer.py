"""The one tokenizer that the server, the engine and the offline API see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo_server.errors import InvalidRequestError
from octavo_server.models.gguf_file import read_gguf
from octavo_server.models.location import resolve_location
from octavo_server.tokenizer.byte_tokenizer import byte_tokenizer
from octavo_server.tokenizer.chat_template import ChatTemplate
from octavo_server.tokenizer.folder_tokenizer import has_tokenizer, load_folder_tokenizer
from octavo_server.tokenizer.gguf_tokenizer import load_gguf_tokenizer
from octavo_server.tokenizer.token_bytes import TokenBytes

if TYPE_CHECKING:
    from octavo_server.tokenizer.parts import TokenizerParts


def load_tokenizer(location: str | Path, *, chat_template: str | None = None, placeholder: bool = False) -> Tokenizer:
    """The tokenizer of the model at `location`, a Hugging Face folder or a .gguf file.

    Args:
        location: as of `load_model`; a folder may hold a tokenizer alone.
        chat_template: Jinja source that replaces the model's own.
        placeholder: where the folder holds none, let each byte be a token.

    Raises:
        StartupError: ModelNotFound, ModelInvalid or UnsupportedArchitecture.
    """
    path = Path(location).expanduser()
    if not has_tokenizer(path):
        path = resolve_location(location).path
    if path.is_file():
        parts = load_gguf_tokenizer(read_gguf(path))
    elif placeholder and not has_tokenizer(path):
        parts = byte_tokenizer(path)
    else:
        parts = load_folder_tokenizer(path)
    return Tokenizer(parts, chat_template=chat_template)


class Tokenizer:
    """Text to ids and back. Immutable once made; safe to use from several threads."""

    def __init__(self, parts: TokenizerParts, *, chat_template: str | None = None) -> None:
        self._backend = parts.backend
        self._bytes = TokenBytes(parts.backend)
        self._max_token_chars = max(map(len, parts.backend.get_vocab(with_added_tokens=True)), default=1)
        self.special_tokens = dict(parts.special_tokens)
        added = parts.backend.get_added_tokens_decoder()
        self.special_token_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.special_ids_by_text = {added[token_id].content: token_id for token_id in self.special_token_ids}
        templates = parts.chat_templates if chat_template is None else {"default": chat_template}
        self._template = ChatTemplate(templates, parts.special_tokens, origin=parts.origin) if templates else None
        self._template_sources = dict(templates)

    @property
    def vocab_size(self) -> int:
        """Ids that mean something, added tokens included; a model's own vocabulary may be padded beyond."""
        return len(self._bytes)

    @property
    def bos_token_id(self) -> int | None:
        return self._named_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._named_id("eos_token")

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def chat_template_sources(self) -> Mapping[str, str]:
        """Name -> Jinja source, to recognise what a model's tool calls look like."""
        return self._template_sources

    @property
    def max_token_chars(self) -> int:
        """Characters of text that one token stands for at most."""
        return self._max_token_chars

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of `text`; special tokens written out in it are recognised.

        Other threads go on meanwhile: of the backend's methods the batched ones alone let go of the interpreter.
        """
        ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`; bytes that are no UTF-8 become U+FFFD, ids without a token nothing."""
        known = [token_id for token_id in token_ids if 0 <= token_id < len(self._bytes)]
        text: str = self._backend.decode(known, skip_special_tokens=skip_special_tokens)
        return text

    def token_id(self, token: str) -> int | None:
        """Id of a token by its exact text, such as "<|im_end|>"."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def token_text(self, token_id: int) -> str:
        """The token as a reader may see it; half a character shows as U+FFFD."""
        return self._bytes[token_id].decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token stands for in running text; of a special token its literal text."""
        return self._bytes[token_id]

    def is_special(self, token_id: int) -> bool:
        """Whether `skip_special_tokens` hides it."""
        return token_id in self.special_token_ids

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
        template: str | None = None,
    ) -> str:
        """The prompt text of a chat; encode it with `add_special_tokens=False`, the template writes them itself.

        Raises:
            InvalidRequestError: the model has no chat template and no other was given, or it refuses the messages.
            StartupError: `template` does not parse.
        """
        used = self._template if template is None else self._with_source(template)
        if used is None:
            message = "this model has no chat template; start the server with --chat-template, or use /v1/completions"
            raise InvalidRequestError(message, param="messages")
        return used.render(
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            extra=extra,
        )

    def template_reads(self, variable: str, *, has_tools: bool = False) -> bool:
        """Whether the chat template that would be taken looks at a variable."""
        return self._template is not None and self._template.reads(variable, has_tools=has_tools)

    def _with_source(self, source: str) -> ChatTemplate:
        return ChatTemplate({"default": source}, self.special_tokens, origin="the given chat_template")

    def _named_id(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self.token_id(text)
