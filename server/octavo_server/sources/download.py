"""A model's files into a folder, from wherever its name says, checked against what the source says they are.

A file that is there and right is not fetched again; one that is wrong is removed and named.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import closing
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from octavo_server.errors import StartupError
from octavo_server.sources import checksum as checksums
from octavo_server.sources.disk import DiskStore
from octavo_server.sources.fetch import fetch_files
from octavo_server.sources.folder import sha256_of
from octavo_server.sources.hub import fetch_model, list_files
from octavo_server.sources.store import CHUNK_BYTES, TEXT_FILES, WEIGHT_FILES
from octavo_server.sources.uri import Artifact, BucketModel, HubModel, WebModel, parse_source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo_server.sources.hub import HubFile
    from octavo_server.sources.store import OnBytes, Store
    from octavo_server.sources.uri import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which files, and what they must be."""

    patterns: tuple[str, ...] | None = None
    """Names of the files; None: what serving reads."""
    checksum: str = ""
    """As `checksum.py` defines it; empty: whatever comes."""
    verify: bool = True
    """Read again what is already there."""
    endpoint: str | None = None
    """Of the hub; None: as `HF_ENDPOINT` says."""


def download(uri: str, to: Path, wanted: Wanted, on_bytes: OnBytes) -> Path:
    """Fetches what `uri` names into `to`, which is made where it is missing; gives the folder, or the .gguf file.

    Raises:
        StartupError: with the reason that the control plane shows.
    """
    return download_source(parse_source(uri), to, wanted, on_bytes)


def download_source(source: Source, to: Path, wanted: Wanted, on_bytes: OnBytes) -> Path:
    """As `download`, of a name that was read already."""
    try:
        to.mkdir(parents=True, exist_ok=True)
        if isinstance(source, HubModel):
            return _from_hub(source, to, wanted, on_bytes)
        return _from_store(source, to, wanted, on_bytes)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StartupError("DownloadStalled", f"cannot write to {to}: {reason}; make room, and run it again") from error


def _from_store(source: WebModel | BucketModel | Artifact | Path, to: Path, wanted: Wanted, on_bytes: OnBytes) -> Path:
    with closing(open_store(source)) as store:
        fetched = fetch_files(store, to, wanted.patterns, on_bytes, verify=wanted.verify)
        if wanted.checksum:
            checksums.check(wanted.checksum, store.digest or checksums.checksum_of(fetched.digests), store.title)
    names = list(fetched.digests)
    return to / names[0] if len(names) == 1 and names[0].lower().endswith(".gguf") else to


def open_store(source: WebModel | BucketModel | Artifact | Path) -> Store:
    """Each imports its library when it is needed."""
    match source:
        case WebModel():
            from octavo_server.sources.web import WebStore

            return WebStore(source, os.environ)
        case BucketModel():
            from octavo_server.sources.bucket import BucketStore

            return BucketStore(source, os.environ)
        case Artifact():
            from octavo_server.sources.registry import RegistryStore

            return RegistryStore(source, os.environ)
        case Path():
            return DiskStore(source.expanduser())


def _from_hub(source: HubModel, to: Path, wanted: Wanted, on_bytes: OnBytes) -> Path:
    # One commit for the list and for the files, whatever is pushed meanwhile.
    commit, files = list_files(source, endpoint=wanted.endpoint)
    patterns = wanted.patterns or TEXT_FILES + WEIGHT_FILES
    pinned = replace(source, revision=commit)
    path = fetch_model(pinned, on_bytes=on_bytes, files=patterns, to=to, endpoint=wanted.endpoint)
    chosen = [file for file in files if (file.name == source.file if source.file else _matches(file.name, patterns))]
    if not chosen:
        raise StartupError("ModelNotFound", f"{source.repository} has no file that matches {', '.join(patterns)}")
    for file in chosen if wanted.verify else ():
        _check(to / file.name, file)
    if wanted.checksum:
        check_files(source.repository, to, [file.name for file in chosen], wanted.checksum)
    return path


def check_files(title: str, folder: Path, names: Sequence[str], expected: str) -> None:
    """Raises StartupError where the files of the folder have not the checksum."""
    checksums.check(expected, checksums.checksum_of({name: sha256_of(folder / name) for name in names}), title)


def _check(path: Path, file: HubFile) -> None:
    """Raises StartupError where the bytes are not those that the hub has."""
    if file.sha256 is not None:
        digest = hashlib.sha256()
    else:
        # What git calls a blob.
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as content:
        while data := content.read(CHUNK_BYTES):
            digest.update(data)
    if digest.hexdigest() != (file.sha256 or file.blob_id):
        path.unlink()
        raise StartupError("ChecksumMismatch", f"{path} was damaged on its way and is removed; run the command again")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
