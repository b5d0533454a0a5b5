"""`--model-checksum`: of one file its SHA-256, of an artifact that of its manifest, of several files that of their list."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from octavo_server.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Mapping


def checksum_of(digests: Mapping[str, str]) -> str:
    """Of one file its own; of several, what `sha256sum FILES | sha256sum` says of the names in the order of their bytes.

    Args:
        digests: SHA-256 in hex by name.
    """
    if len(digests) == 1:
        return f"sha256:{next(iter(digests.values()))}"
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests, key=str.encode))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def check(expected: str, found: str, title: str) -> None:
    """Raises StartupError where they differ."""
    if expected != found:
        raise StartupError(
            "ChecksumMismatch",
            f"{title} is not the model that was expected: its checksum is {found}, not {expected}; correct one of them",
        )
