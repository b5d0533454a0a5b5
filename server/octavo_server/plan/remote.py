"""What describes a model that lies elsewhere: its config.json, or the beginning of its GGUF file. The weights stay there."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from octavo_server.errors import ConfigError, StartupError
from octavo_server.models.gguf_file import read_gguf
from octavo_server.sources.uri import HubModel, WebModel

if TYPE_CHECKING:
    from octavo_server.sources.store import RemoteFile, Store
    from octavo_server.sources.uri import Artifact, BucketModel

_CONFIG = "config.json"
_FIRST_TRY_BYTES = 2**20
MAX_HEADER_BYTES = 2**28
"""Far more than the largest vocabulary takes."""


def fetch_description(source: HubModel | WebModel | BucketModel | Artifact, folder: Path) -> Path:
    """A folder with config.json, or a file that begins as the GGUF file does; of the hub's folders in its own cache.

    Raises:
        StartupError: there is neither, or it cannot be fetched.
    """
    if isinstance(source, HubModel) and not source.file:
        from octavo_server.sources.hub import fetch_model

        return fetch_model(source, on_bytes=lambda *_: None, files=(_CONFIG,))
    with closing(_store(source)) as store:
        return _fetch(store, folder)


def _store(source: HubModel | WebModel | BucketModel | Artifact) -> Store:
    from octavo_server.sources.download import open_store

    if not isinstance(source, HubModel):
        return open_store(source)
    from huggingface_hub import get_token, hf_hub_url

    from octavo_server.sources.web import TOKEN, WebStore

    url = hf_hub_url(source.repository, source.file, revision=source.revision)
    return WebStore(WebModel(url=url), {TOKEN: get_token() or ""})


def _fetch(store: Store, folder: Path) -> Path:
    files = {PurePosixPath(file.name).name: file for file in store.list_files()}
    if _CONFIG in files:
        (folder / _CONFIG).write_bytes(b"".join(store.read(files[_CONFIG], 0)))
        return folder
    ggufs = [file for name, file in files.items() if name.lower().endswith(".gguf")]
    if len(ggufs) != 1:
        raise ConfigError(f"{store.title} has no {_CONFIG} and {len(ggufs)} GGUF files; name one of them")
    return _fetch_header(store, ggufs[0], folder / PurePosixPath(ggufs[0].name).name)


def _fetch_header(store: Store, file: RemoteFile, path: Path) -> Path:
    """Reads on until the header is whole, which nothing tells but the header itself."""
    size, next_try = 0, _FIRST_TRY_BYTES
    with path.open("wb") as beginning:
        for piece in store.read(file, 0):
            size += beginning.write(piece)
            if size < next_try:
                continue
            beginning.flush()
            if _is_whole(path):
                return path
            if size > MAX_HEADER_BYTES:
                break
            next_try *= 2
    # Raises with what is wrong with it.
    read_gguf(path)
    return path


def _is_whole(path: Path) -> bool:
    try:
        read_gguf(path)
    except StartupError:
        return False
    return True
