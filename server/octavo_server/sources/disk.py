"""A folder or file of this machine as a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from octavo_server.errors import StartupError
from octavo_server.sources.store import CHUNK_BYTES, RemoteFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class DiskStore:
    """Names are relative to the folder, or the file's own."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._root = source.parent if source.is_file() else source

    @property
    def title(self) -> str:
        return str(self._source)

    @property
    def digest(self) -> str:
        return ""

    def list_files(self) -> Sequence[RemoteFile]:
        if self._source.is_file():
            return [self._describe(self._source)]
        if not self._source.is_dir():
            raise StartupError("ModelNotFound", f"{self._source} does not exist")
        return [self._describe(path) for path in sorted(self._source.rglob("*")) if path.is_file()]

    def read(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
        with (self._root / file.name).open("rb") as source:
            source.seek(offset)
            while data := source.read(CHUNK_BYTES):
                yield data

    def close(self) -> None:
        """Nothing is open between two calls."""

    def _describe(self, path: Path) -> RemoteFile:
        status = path.stat()
        name = path.relative_to(self._root).as_posix()
        return RemoteFile(name=name, size=status.st_size, version=f"{status.st_mtime_ns}-{status.st_size}")
