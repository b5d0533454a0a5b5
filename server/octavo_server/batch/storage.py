"""Everything under `--data-dir`: files, batches and their journals; whole or not at all, bounded in count, bytes and age.

    lock                  held while a server uses the folder
    files/ID.json ID.data a file's record, its bytes; without a record the bytes are what a crash left
    batches/ID.json       a batch's record
    batches/ID.journal    the answers so far of one that runs

Readers see frozen records and never wait; writers take turns. No name on the disk comes from a client.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from octavo_server.batch.disk import FULL_MESSAGE, disk_errors, sync, write_whole
from octavo_server.batch.journal import Journal
from octavo_server.batch.records import BatchRecord, FileRecord
from octavo_server.errors import ConfigError, ConflictError, DiskError, NotStoredError, StoreFullError

logger = logging.getLogger(__name__)

R = TypeVar("R", FileRecord, BatchRecord)

MIN_FREE_BYTES = 2**20
"""With less on the disk nothing is begun: what was computed could not be kept."""
OUTPUT = "batch_output"
"""Purpose of files that a batch made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """How much is kept."""

    max_files: int
    """And as many batches."""
    max_bytes: int
    """Of all files and journals together."""
    max_upload_bytes: int
    max_age_s: int


class Store:
    """Owns the folder. Its methods block; none but `add_file` and what reads a file takes longer than a disk's sync."""

    def __init__(self, folder: Path, limits: StoreLimits, *, clock: Callable[[], float] = time.time) -> None:
        """Opens or makes the folder.

        Raises:
            ConfigError: it cannot be used, or another server uses it.
        """
        self.limits = limits
        self._clock = clock
        self._files_folder, self._batches_folder = folder / "files", folder / "batches"
        self._turn = threading.RLock()
        self._uploading = 0
        self._journal_bytes: dict[str, int] = {}
        # Replaced whole at each change, so that readers need no turn.
        self._files: dict[str, FileRecord] = {}
        self._batches: dict[str, BatchRecord] = {}
        try:
            for needed in (self._files_folder, self._batches_folder):
                needed.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("w")
            self._read_back(folder)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(f"--data-dir {folder} cannot be used: {reason}") from error

    def now(self) -> int:
        """Unix seconds."""
        return int(self._clock())

    @property
    def num_bytes(self) -> int:
        """Of all files and journals."""
        files = sum(record.num_bytes for record in self._files.values())
        return files + sum(self._journal_bytes.values()) + self._uploading

    def check_room(self) -> None:
        """Raises StoreFullError where the bytes are used up, DiskError where those of the disk are."""
        used, most = self.num_bytes, self.limits.max_bytes
        with disk_errors():
            disk = os.statvfs(self._files_folder)
        if disk.f_bavail * disk.f_frsize < MIN_FREE_BYTES:
            raise DiskError(FULL_MESSAGE)
        if used >= most:
            raise StoreFullError(
                f"{used:,} bytes are stored, --max-stored-bytes is {most:,}; delete files or wait until some expire"
            )

    # Files

    def files(self) -> list[FileRecord]:
        """All of them, oldest first."""
        now = self.now()
        return [record for record in self._files.values() if record.expires_at > now]

    def file(self, file_id: str) -> FileRecord:
        """Raises NotStoredError."""
        record = self._files.get(file_id)
        if record is None or record.expires_at <= self.now():
            raise NotStoredError(f"there is no file {file_id[:100]!r}; it may have expired")
        return record

    def path(self, record: FileRecord) -> Path:
        """Where its bytes are."""
        return self._files_folder / f"{record.file_id}.data"

    def input_path(self, batch: BatchRecord) -> Path:
        """Where the bytes of its input are, which are kept until it ends.

        Raises:
            NotStoredError: they are gone all the same.
        """
        path = self._files_folder / f"{batch.input_file_id}.data"
        if batch.input_file_id not in self._files or not path.is_file():
            raise NotStoredError(f"the input file {batch.input_file_id} is gone")
        return path

    def upload(self, file_id: str) -> Upload:
        """Begins to write a file that a client sends.

        Raises:
            StoreFullError: there is no room for one more.
        """
        if len(self.files()) >= self.limits.max_files:
            raise StoreFullError(
                f"{len(self._files):,} files are stored, --max-stored-files is {self.limits.max_files:,}; delete some"
            )
        self.check_room()
        return Upload(self, file_id, self.limits.max_upload_bytes)

    def make_file(self, file_id: str, parts: Iterable[bytes], *, filename: str, max_age_s: int) -> FileRecord | None:
        """Writes a file that a batch made; None, and no file, where there is nothing in it."""
        with Upload(self, file_id, None) as upload:
            for part in parts:
                upload.write(part)
            return upload.commit(purpose=OUTPUT, filename=filename, max_age_s=max_age_s) if upload.num_bytes else None

    def delete_file(self, file_id: str) -> None:
        """Removes it.

        Raises:
            NotStoredError: there is none.
            ConflictError: a batch that has not ended reads it.
        """
        with self._turn:
            record = self.file(file_id)
            user = next((b for b in self.batches() if not b.status.is_end and b.input_file_id == file_id), None)
            if user is not None:
                raise ConflictError(f"batch {user.batch_id} still reads this file; cancel it or wait for its end")
            self._remove_file(record)

    # Batches

    def batches(self) -> list[BatchRecord]:
        """All of them, oldest first."""
        return list(self._batches.values())

    def batch(self, batch_id: str) -> BatchRecord:
        """Raises NotStoredError."""
        record = self._batches.get(batch_id)
        if record is None:
            raise NotStoredError(f"there is no batch {batch_id[:100]!r}; it may have been dropped")
        return record

    def add_batch(self, record: BatchRecord) -> None:
        """Keeps a new one; where there are too many, the oldest that has ended goes.

        Raises:
            StoreFullError: all of them still run, or there is no room for answers.
        """
        with self._turn:
            self.check_room()
            self.file(record.input_file_id)
            while len(self._batches) >= self.limits.max_files:
                ended = next((batch for batch in self._batches.values() if batch.status.is_end), None)
                if ended is None:
                    raise StoreFullError(
                        f"{len(self._batches):,} batches have not ended, --max-stored-files is {self.limits.max_files:,}; "
                        f"cancel some or wait"
                    )
                self._remove_batch(ended)
            self._write_batch(record)

    def update_batch(
        self, batch_id: str, change: Callable[[BatchRecord], BatchRecord], *, lasting: bool = True
    ) -> BatchRecord:
        """Replaces a batch's record by what `change` makes of it; not `lasting`: until the next start."""
        with self._turn:
            changed = change(self.batch(batch_id))
            if lasting:
                self._write_batch(changed)
            else:
                self._batches = {**self._batches, batch_id: changed}
            return changed

    def journal(self, batch_id: str) -> Journal:
        """The answers so far."""
        return Journal(self._batches_folder / f"{batch_id}.journal")

    def note_journal(self, batch_id: str, num_bytes: int) -> None:
        """Counts a journal's bytes among those that are stored; 0: it is gone."""
        if num_bytes:
            self._journal_bytes[batch_id] = num_bytes
        else:
            self._journal_bytes.pop(batch_id, None)

    def sweep(self) -> None:
        """Drops what is too old: files at their `expires_at` unless a batch still reads them, batches that ended long ago."""
        now = self.now()
        with self._turn:
            read = {batch.input_file_id for batch in self._batches.values() if not batch.status.is_end}
            for record in list(self._files.values()):
                if record.expires_at <= now and record.file_id not in read:
                    self._remove_file(record)
            for batch in self.batches():
                if batch.ended_at is not None and batch.ended_at + self.limits.max_age_s <= now:
                    self._remove_batch(batch)

    def close(self) -> None:
        """Lets another server use the folder."""
        self._lock.close()

    def _read_back(self, folder: Path) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in (*folder.glob("*/*.tmp"), *folder.glob("*/*.part")):
                left.unlink()
            self._files = {record.file_id: record for record in _records(self._files_folder, FileRecord)}
            self._batches = {record.batch_id: record for record in _records(self._batches_folder, BatchRecord)}
            for path in self._files_folder.glob("*.data"):
                # Of a record that is there but cannot be read the bytes stay, for whoever mends it.
                if path.stem not in self._files and not path.with_suffix(".json").exists():
                    path.unlink()
            for file_id in [file_id for file_id, record in self._files.items() if not self.path(record).is_file()]:
                logger.warning("the bytes of %s are missing", file_id)
                del self._files[file_id]
            for path in self._batches_folder.glob("*.journal"):
                if path.stem not in self._batches or self._batches[path.stem].status.is_end:
                    path.unlink()
                else:
                    self._journal_bytes[path.stem] = path.stat().st_size
        except BlockingIOError as error:
            self._lock.close()
            raise ConfigError(f"--data-dir {folder} is used by another server; give each its own") from error
        except OSError:
            self._lock.close()
            raise

    def _write_batch(self, record: BatchRecord) -> None:
        write_whole(self._batches_folder / f"{record.batch_id}.json", msgspec.json.encode(record))
        self._batches = {**self._batches, record.batch_id: record}

    def _remove_batch(self, record: BatchRecord) -> None:
        with disk_errors():
            (self._batches_folder / f"{record.batch_id}.json").unlink(missing_ok=True)
        self._batches = {name: batch for name, batch in self._batches.items() if name != record.batch_id}

    def _remove_file(self, record: FileRecord) -> None:
        # The record first: bytes without one are removed at the next start.
        with disk_errors():
            (self._files_folder / f"{record.file_id}.json").unlink(missing_ok=True)
            self._files = {name: file for name, file in self._files.items() if name != record.file_id}
            self.path(record).unlink(missing_ok=True)

    def _keep_file(self, record: FileRecord, part: Path) -> None:
        with self._turn:
            with disk_errors():
                part.replace(self.path(record))
            write_whole(self._files_folder / f"{record.file_id}.json", msgspec.json.encode(record))
            self._files = {**self._files, record.file_id: record}

    def _count_upload(self, num_bytes: int) -> None:
        with self._turn:
            self._uploading += num_bytes


class Upload:
    """A file on its way to the disk; without `commit` nothing is left of it."""

    def __init__(self, store: Store, file_id: str, max_bytes: int | None) -> None:
        self._store = store
        self._file_id = file_id
        self._max_bytes = max_bytes
        self._path = store._files_folder / f"{file_id}.part"
        self.num_bytes = 0
        with disk_errors():
            self._file: IO[bytes] = self._path.open("xb")

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Adds bytes.

        Raises:
            StoreFullError: more than one file, or all of them, may have.
            DiskError: the disk takes no more.
        """
        if self._max_bytes is not None:
            if self.num_bytes + len(data) > self._max_bytes:
                raise StoreFullError(
                    f"the file has more than the {self._max_bytes:,} bytes of --max-upload-bytes; split it"
                )
            self._store.check_room()
        with disk_errors():
            self._file.write(data)
        self.num_bytes += len(data)
        self._store._count_upload(len(data))

    def commit(self, *, purpose: str, filename: str, max_age_s: int) -> FileRecord:
        """Lets the file be found."""
        store, now = self._store, self._store.now()
        with disk_errors():
            self._file.flush()
            sync(self._file.fileno())
        record = FileRecord(
            file_id=self._file_id,
            purpose=purpose,
            filename=filename,
            num_bytes=self.num_bytes,
            created_at=now,
            expires_at=now + min(max_age_s, store.limits.max_age_s),
        )
        store._keep_file(record, self._path)
        return record

    def close(self) -> None:
        """Removes what was not committed."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        self._store._count_upload(-self.num_bytes)
        self.num_bytes = 0


def _records(folder: Path, kind: type[R]) -> list[R]:
    """Oldest first; what cannot be read is told and left where it is."""
    found: list[R] = []
    for path in folder.glob("*.json"):
        try:
            record = msgspec.json.decode(path.read_bytes(), type=kind)
        except (OSError, msgspec.MsgspecError) as error:
            logger.warning("passing over %s, which cannot be read: %s", path.name, error)
            continue
        found.append(record)
    return sorted(found, key=lambda record: (record.created_at, _id_of(record)))


def _id_of(record: FileRecord | BatchRecord) -> str:
    return record.file_id if isinstance(record, FileRecord) else record.batch_id
