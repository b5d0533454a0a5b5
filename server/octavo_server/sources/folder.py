"""The folder that a model is fetched into: what came from where, whose turn it is, and whether there is room."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import shutil
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from octavo_server.errors import StartupError
from octavo_server.sources.store import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from octavo_server.sources.store import OnBytes, RemoteFile

STATE = ".octavo"
LOOK_S = 1.0


class FolderRecord:
    """`.octavo/files.json` and the parts beside it; written by several threads of one process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / STATE / "files.json"
        self._parts = folder / STATE / "parts"
        self._lock = threading.Lock()
        self._state: dict[str, Any] = {"files": {}, "complete": []}
        try:
            state = json.loads(self._path.read_text(encoding="utf-8"))
            if isinstance(state, dict) and state.keys() == self._state.keys():
                self._state = state
        except (OSError, ValueError):
            # What is not known is fetched.
            return

    def has(self, file: RemoteFile, *, verify: bool) -> bool:
        """Whether this very file is there; `verify` reads it."""
        known, path = self._state["files"].get(file.name), self._folder / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        if known is None or known["version"] != file.version or not file.version:
            # Somebody put it there.
            return bool(file.sha256) and sha256_of(path) == file.sha256 and self._adopt(file)
        return not verify or sha256_of(path) == known["sha256"]

    def _adopt(self, file: RemoteFile) -> bool:
        self.add(file, file.sha256)
        return True

    def add(self, file: RemoteFile, sha256: str) -> None:
        """The file is there, whole."""
        with self._lock:
            self._state["files"][file.name] = {"size": file.size, "version": file.version, "sha256": sha256}
            self._write()

    def finish(self, title: str, patterns: Sequence[str] | None, files: Sequence[RemoteFile]) -> dict[str, str]:
        """All that was asked for is there; gives the digests by name."""
        names = [file.name for file in files]
        entry = {"title": title, "patterns": patterns and list(patterns), "names": names}
        if entry not in self._state["complete"]:
            self._state["complete"] = [entry]
            self._write()
        return self._digests(names)

    def complete(self, title: str, patterns: Sequence[str] | None) -> dict[str, str] | None:
        """The digests by name of a download that was finished before, None where there was none."""
        for entry in self._state["complete"]:
            if (entry["title"], entry["patterns"]) == (title, patterns and list(patterns)):
                names = entry["names"]
                return self._digests(names) if all((self._folder / name).is_file() for name in names) else None
        return None

    def part_path(self, file: RemoteFile) -> Path:
        """Where its bytes are gathered: another path for another version."""
        identity = json.dumps([file.name, file.version, file.size])
        return self._parts / hashlib.sha256(identity.encode()).hexdigest()[:24]

    def keep_parts(self, files: Sequence[RemoteFile]) -> int:
        """Removes parts that none of `files` goes on with; gives the bytes that are left."""
        wanted = {self.part_path(file) for file in files if file.version}
        kept = 0
        for path in self._parts.iterdir() if self._parts.is_dir() else ():
            if path in wanted:
                kept += path.stat().st_size
            else:
                path.unlink()
        return kept

    def _digests(self, names: Sequence[str]) -> dict[str, str]:
        return {name: self._state["files"][name]["sha256"] for name in names}

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self._state, indent=1), encoding="utf-8")
        new.replace(self._path)


def sha256_of(path: Path) -> str:
    """In hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            digest.update(data)
    return digest.hexdigest()


def check_room(needed_bytes: int, folder: Path, title: str) -> None:
    """Raises StartupError where the disk is too full for `needed_bytes` more."""
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise StartupError(
            "DownloadStalled",
            f"{title} needs {size_text(needed_bytes)} more, {size_text(free)} are free in {folder}; make room or take a "
            "larger volume (cache.size), and run it again",
        )


def size_text(num_bytes: int) -> str:
    """Such as "14.9 GB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


@contextmanager
def locked(folder: Path, on_bytes: OnBytes, sleep: Callable[[float], Any]) -> Iterator[None]:
    """Keeps other processes out of the folder; while one works there, `on_bytes` tells when it moves."""
    state = folder / STATE
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("a") as file:
        seen = -1
        while not _lock(file.fileno()):
            # Whoever waits lives as long as the one that works does.
            grown = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            if grown != seen:
                seen = grown
                on_bytes(grown, 0)
            sleep(LOOK_S)
        yield


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            # A file system without locks: a file is still moved to its name only when it is whole.
            return True
        raise
    return True
