"""A file that is being fetched: its bytes so far and their SHA-256."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from octavo_server.sources.store import CHUNK_BYTES

if TYPE_CHECKING:
    from pathlib import Path


class Part:
    """Goes on with the bytes that are there; owns the open file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._digest = hashlib.sha256()
        self.size = 0
        while data := self._file.read(CHUNK_BYTES):
            self._digest.update(data)
            self.size += len(data)

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def restart(self) -> None:
        """Forgets all bytes."""
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self.size = 0

    def finish(self) -> str:
        """Brings the bytes to the disk; gives their SHA-256 in hex."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()
