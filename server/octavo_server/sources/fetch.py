"""Files from a store into a folder: resumed, checked, whole or not there.

A file is written under `.octavo/parts/` and moved to its name when its last byte is right, so that what bears a model's
name is a model's file. `.octavo/files.json` tells what came from where; by it a later run knows what it need not fetch.

| what ends the run | what the next one finds |
|---|---|
| killed, or the network went | the parts: it goes on behind their last byte |
| the file changed at its source | another version: its part is not gone on with |
| bytes that are not those the source names | nothing: the part is removed |
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo_server.errors import StartupError
from octavo_server.sources.folder import FolderRecord, check_room, locked
from octavo_server.sources.part import Part
from octavo_server.sources.store import BrokenOffError, choose_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from octavo_server.sources.store import OnBytes, RemoteFile, Store

    Sleep = Callable[[float], Any]

AT_ONCE = 4
"""Files that are fetched at the same time: one connection seldom fills a line."""
TRIES = 5
"""In a row without a new byte, until the download counts as stalled."""
FIRST_WAIT_S = 1.0
"""After the first failure; each further wait is twice as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What lies in the folder now: SHA-256 in hex by name."""

    digests: dict[str, str]


def fetch_files(
    store: Store,
    to: Path,
    patterns: Sequence[str] | None,
    on_bytes: OnBytes,
    *,
    verify: bool = False,
    sleep: Sleep = time.sleep,
) -> Fetched:
    """Brings the files that match `patterns` (None: what serving reads) into the folder `to`.

    Args:
        store: where they are.
        to: made where it is missing; one process at a time works in it.
        patterns: of names.
        on_bytes: told how far it has come.
        verify: read what is already there and fetch again what is damaged.
        sleep: waits so many seconds between two tries.

    Raises:
        StartupError: with the reason that the control plane shows.
    """
    to.mkdir(parents=True, exist_ok=True)
    with locked(to, on_bytes, sleep):
        record = FolderRecord(to)
        try:
            chosen = choose_files(_list(store, sleep), patterns, store.title)
        except BrokenOffError as error:
            known = record.complete(store.title, patterns)
            if known is None:
                raise StartupError("DownloadStalled", _stalled(store, error)) from error
            # All of it is there: a start needs no network.
            return Fetched(digests=known)
        download = _Download(store, to, record, on_bytes, sleep)
        download.run(chosen, verify=verify)
        return Fetched(digests=record.finish(store.title, patterns, chosen))


def _list(store: Store, sleep: Sleep) -> Sequence[RemoteFile]:
    for attempt in range(TRIES - 1):
        try:
            return store.list_files()
        except BrokenOffError:
            sleep(FIRST_WAIT_S * 2**attempt)
    return store.list_files()


def _stalled(store: Store, error: Exception) -> str:
    return f"{store.title} cannot be read: {error}; tried {TRIES} times, check the network and run it again"


class _Download:
    """One run; owns the count of bytes, which all its threads add to."""

    def __init__(self, store: Store, to: Path, record: FolderRecord, on_bytes: OnBytes, sleep: Sleep) -> None:
        self._store = store
        self._to = to
        self._record = record
        self._on_bytes = on_bytes
        self._sleep = sleep
        self._lock = threading.Lock()
        self._is_given_up = False
        self._done = self._total = 0

    def run(self, chosen: Sequence[RemoteFile], *, verify: bool) -> None:
        missing = [file for file in chosen if not self._record.has(file, verify=verify)]
        self._total = sum(file.size for file in missing)
        self._done = self._record.keep_parts(missing)
        check_room(self._total - self._done, self._to, self._store.title)
        self._on_bytes(self._done, self._total)
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="download") as pool:
            futures = [pool.submit(self._fetch, file) for file in missing]
            try:
                for future in futures:
                    future.result()
            finally:
                self._is_given_up = True
                for future in futures:
                    future.cancel()

    def _fetch(self, file: RemoteFile) -> None:
        with Part(self._record.part_path(file)) as part:
            self._fill(file, part)
            digest = part.finish()
        if file.sha256 not in ("", digest):
            part.path.unlink()
            raise StartupError(
                "ChecksumMismatch",
                f"{file.name} was damaged on its way from {self._store.title} and is removed: its SHA-256 is {digest}, "
                f"expected {file.sha256}; run it again",
            )
        target = self._to / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        part.path.replace(target)
        self._record.add(file, digest)

    def _fill(self, file: RemoteFile, part: Part) -> None:
        """Reads until the file is whole; a connection that breaks is made anew behind the last byte."""
        failures = 0
        while part.size < file.size and not self._is_given_up:
            before = part.size
            try:
                self._read(file, part)
            except BrokenOffError as error:
                failures = 1 if part.size > before else failures + 1
                if failures == TRIES:
                    raise StartupError("DownloadStalled", _stalled(self._store, error)) from error
                if not file.version:
                    self._count(-part.size)
                    part.restart()
                self._sleep(FIRST_WAIT_S * 2 ** (failures - 1))

    def _read(self, file: RemoteFile, part: Part) -> None:
        for data in self._store.read(file, part.size):
            if part.size + len(data) > file.size:
                part.restart()
                raise StartupError(
                    "ChecksumMismatch",
                    f"{file.name} is longer than the {file.size} bytes that {self._store.title} named",
                )
            part.append(data)
            self._count(len(data))
            if self._is_given_up:
                return
        if part.size < file.size:
            raise BrokenOffError(f"the connection ended after {part.size} of {file.size} bytes of {file.name}")

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self._done += num_bytes
            self._on_bytes(self._done, self._total)
