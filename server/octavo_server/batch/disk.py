"""The few ways in which anything is written: whole or not at all, and on the disk before it counts."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from octavo_server.errors import DiskError

FULL_MESSAGE = "the disk is full (that of --data-dir, or of the output); delete files, or give it more room"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Names what the system says when it cannot write.

    Raises:
        DiskError: in place of OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskError(FULL_MESSAGE) from error
        reason = (error.strerror or type(error).__name__).lower()
        raise DiskError(f"--data-dir, or the folder of the output, cannot be written or read: {reason}") from error


def write_whole(path: Path, data: bytes) -> None:
    """Replaces `path`; after a crash it holds what it held before, or all of `data`."""
    write_parts(path, [data])


def write_parts(path: Path, parts: Iterable[bytes]) -> None:
    """As write_whole, for what is made part by part."""
    temporary = path.with_name(path.name + ".tmp")
    with disk_errors():
        try:
            with temporary.open("wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                sync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def sync(descriptor: int) -> None:
    """Returns when the file's bytes are on the disk."""
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Returns when the folder's names are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
