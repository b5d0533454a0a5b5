"""What every place that files are fetched from looks like to `fetch.py`: a list of files, each readable from any byte."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Protocol

from octavo_server.errors import OctavoError, StartupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    OnBytes = Callable[[int, int], None]
    """Told (bytes, bytes in all) from several threads."""

TEXT_FILES = ("*.json", "*.model", "*.jinja", "*.txt")
"""Configuration and tokenizer."""
WEIGHT_FILES = ("*.safetensors",)
GGUF_FILES = ("*.gguf",)

CHUNK_BYTES = 2**20


class BrokenOffError(OctavoError):
    """The network or the other side failed in a way that may pass: it is worth another try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file that can be fetched."""

    name: str
    """Its path below the folder that it is fetched into, with forward slashes."""
    size: int
    """Bytes."""
    version: str = ""
    """Changes with the bytes (an ETag, a digest); empty: nobody knows, so that half of it is worth nothing."""
    sha256: str = ""
    """Hex, where the source tells."""


class Store(Protocol):
    """A place that files are fetched from. Used by several threads at once."""

    @property
    def title(self) -> str:
        """How messages call it."""

    @property
    def digest(self) -> str:
        """sha256:HEX of the whole once it was listed, where the source has such a thing; else empty."""

    def list_files(self) -> Sequence[RemoteFile]:
        """All that can be had there; raises StartupError where that is nothing, BrokenOffError where it may pass."""

    def read(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
        """The bytes from `offset` on, in pieces of about CHUNK_BYTES; raises as list_files."""

    def close(self) -> None:
        """Ends its connections."""


def choose_files(files: Sequence[RemoteFile], patterns: Sequence[str] | None, title: str) -> list[RemoteFile]:
    """Those that match; without patterns what serving reads: one GGUF where there are no safetensors.

    Raises:
        StartupError: none does, or a name leads out of the folder.
    """
    if len(files) == 1 and patterns is None:
        chosen = list(files)
    else:
        chosen = _matching(files, patterns or (*TEXT_FILES, *WEIGHT_FILES))
        if patterns is None and not _matching(files, WEIGHT_FILES):
            chosen += _matching(files, GGUF_FILES)
    if not chosen:
        wanted = ", ".join(patterns or (*TEXT_FILES, *WEIGHT_FILES, *GGUF_FILES))
        raise StartupError("ModelNotFound", f"{title} has no file that matches {wanted}")
    for file in chosen:
        if not is_safe(file.name):
            raise StartupError(
                "ModelInvalid", f"{title} has a file named {file.name[:200]!r}, which is no path in a folder"
            )
    return chosen


def _matching(files: Sequence[RemoteFile], patterns: Sequence[str]) -> list[RemoteFile]:
    return [file for file in files if any(fnmatch(file.name, pattern) for pattern in patterns)]


def is_safe(name: str) -> bool:
    """Whether the file lands inside the folder, and not among our own."""
    parts = PurePosixPath(name).parts
    is_plain = bool(parts) and not name.startswith("/") and not re.search(r"[\x00-\x1f\\]", name)
    return is_plain and not {"..", ".octavo", ".cache"} & set(parts) and name == "/".join(parts)
