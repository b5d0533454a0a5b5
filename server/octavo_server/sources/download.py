"""`octavo download`: a model's files into a folder, checked against what the source says they are.

A file that is there and right is not fetched again; one that is wrong is removed and named.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from octavo_server.errors import StartupError
from octavo_server.sources.hub import TEXT_FILES, WEIGHT_FILES, fetch_model, list_files
from octavo_server.sources.uri import HubModel, parse_source

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from octavo_server.sources.hub import HubFile, OnBytes

READ_BYTES = 2**20


def download(
    uri: str, to: Path, patterns: Sequence[str] | None, on_bytes: OnBytes, *, endpoint: str | None = None
) -> Path:
    """Fetches what `uri` names into `to`; gives the folder, or the .gguf file.

    Args:
        uri: as `parse_source` reads it.
        to: made where it is missing.
        patterns: names of the files; None: what serving reads.
        on_bytes: told (bytes, bytes in all) from several threads.
        endpoint: of the hub; None: as `HF_ENDPOINT` says.

    Raises:
        StartupError: with the reason that the control plane shows.
    """
    source = parse_source(uri)
    try:
        to.mkdir(parents=True, exist_ok=True)
        if isinstance(source, HubModel):
            return _from_hub(source, to, patterns, on_bytes, endpoint)
        return _from_disk(source.expanduser(), to, patterns, on_bytes)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StartupError("DownloadStalled", f"cannot write to {to}: {reason}; make room, and run it again") from error


def _from_hub(
    source: HubModel, to: Path, patterns: Sequence[str] | None, on_bytes: OnBytes, endpoint: str | None
) -> Path:
    # One commit for the list and for the files, whatever is pushed meanwhile.
    commit, files = list_files(source, endpoint=endpoint)
    wanted = list(patterns or TEXT_FILES + WEIGHT_FILES)
    path = fetch_model(replace(source, revision=commit), on_bytes=on_bytes, files=wanted, to=to, endpoint=endpoint)
    chosen = [file for file in files if (file.name == source.file if source.file else _matches(file.name, wanted))]
    if not chosen:
        raise StartupError("ModelNotFound", f"{source.repository} has no file that matches {', '.join(wanted)}")
    for file in chosen:
        _check(to / file.name, file)
    return path


def _check(path: Path, file: HubFile) -> None:
    """Raises StartupError where the bytes are not those that the hub has."""
    if file.sha256 is not None:
        digest = hashlib.sha256()
    else:
        # What git calls a blob.
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    for data in _read(path):
        digest.update(data)
    if digest.hexdigest() != (file.sha256 or file.blob_id):
        path.unlink()
        raise StartupError("ModelInvalid", f"{path} was damaged on its way and is removed; run the command again")


def _from_disk(source: Path, to: Path, patterns: Sequence[str] | None, on_bytes: OnBytes) -> Path:
    if source.is_file():
        _copy([(source, to / source.name)], on_bytes)
        return to / source.name
    if not source.is_dir():
        raise StartupError("ModelNotFound", f"{source} does not exist")
    wanted = list(patterns or (*TEXT_FILES, *WEIGHT_FILES, "*.gguf"))
    names = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    pairs = [(source / name, to / name) for name in names if _matches(str(name), wanted)]
    if not pairs:
        raise StartupError("ModelNotFound", f"{source} has no file that matches {', '.join(wanted)}")
    _copy(pairs, on_bytes)
    return to


def _copy(pairs: Sequence[tuple[Path, Path]], on_bytes: OnBytes) -> None:
    missing = [(source, target) for source, target in pairs if not _is_same(source, target)]
    total, done = sum(source.stat().st_size for source, _ in missing), 0
    on_bytes(0, total)
    for source, target in missing:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        try:
            with part.open("wb") as file:
                for data in _read(source):
                    file.write(data)
                    done += len(data)
                    on_bytes(done, total)
                file.flush()
                os.fsync(file.fileno())
            shutil.copystat(source, part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


def _is_same(source: Path, target: Path) -> bool:
    if not target.is_file() or source.stat().st_size != target.stat().st_size:
        return False
    return source.samefile(target) or _sha256(source) == _sha256(target)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for data in _read(path):
        digest.update(data)
    return digest.hexdigest()


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            yield data


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
