"""From what `--model` and `--tokenizer` name to files on this machine, fetched where they lie elsewhere."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from octavo_server.errors import ConfigError
from octavo_server.sources.store import TEXT_FILES, WEIGHT_FILES
from octavo_server.sources.uri import HubModel, parse_source

if TYPE_CHECKING:
    from octavo_server.config import EngineConfig
    from octavo_server.engine.startup import StartupProgress


def locate_model(config: EngineConfig, progress: StartupProgress) -> Path:
    """The model's folder or .gguf file.

    Raises:
        StartupError: it is nowhere, cannot be fetched, or is not the one that --model-checksum names.
    """
    from octavo_server.models.location import resolve_location

    source = parse_source(config.model)
    if config.revision is not None and not isinstance(source, HubModel):
        raise ConfigError(f"--revision is for models of the hub, which {config.model[:200]} is not; leave it out")
    if isinstance(source, Path):
        # Before torch is imported: a typing error should not take seconds to be told.
        path = resolve_location(source).path
        _check_here(path, config)
        return path
    progress.enter("downloading")
    if isinstance(source, HubModel):
        return _fetch_from_hub(with_revision(source, config.revision), config, progress)
    from octavo_server.sources.download import Wanted, download_source

    wanted = Wanted(patterns=_patterns(config), checksum=config.model_checksum or "", verify=False)
    folder = _models_folder(config) / _folder_name(source.name, config.model)
    return resolve_location(download_source(source, folder, wanted, progress.add_bytes)).path


def _fetch_from_hub(source: HubModel, config: EngineConfig, progress: StartupProgress) -> Path:
    """Into the library's own cache, unless a folder is named."""
    from octavo_server.sources.hub import fetch_model

    to = None
    if config.download_dir is not None:
        to = _models_folder(config) / _folder_name(source.name, f"{source.repository}@{source.revision or ''}")
    patterns = _patterns(config) or TEXT_FILES + WEIGHT_FILES
    path = fetch_model(source, on_bytes=progress.add_bytes, files=patterns, to=to)
    _check_here(path, config)
    return path


def _patterns(config: EngineConfig) -> tuple[str, ...] | None:
    if config.load_format == "dummy":
        # Random weights stand in for the files, which are most of what would be fetched.
        return TEXT_FILES
    return TEXT_FILES + config.weight_files if config.weight_files else None


def _models_folder(config: EngineConfig) -> Path:
    if config.download_dir is not None:
        return Path(config.download_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "octavo" / "models"


def _folder_name(name: str, model: str) -> str:
    """One a place: two models may have the same name. A signature in the query is not part of the place."""
    digest = hashlib.sha256(model.partition("?")[0].encode()).hexdigest()[:12]
    return f"{re.sub('[^A-Za-z0-9._-]+', '-', name)[:80]}-{digest}"


def _check_here(path: Path, config: EngineConfig) -> None:
    """Of a folder all files count that serving reads."""
    if config.model_checksum is None:
        return
    from octavo_server.sources.disk import DiskStore
    from octavo_server.sources.download import check_files
    from octavo_server.sources.store import choose_files

    store = DiskStore(path)
    chosen = choose_files(store.list_files(), _patterns(config), store.title)
    folder = path.parent if path.is_file() else path
    check_files(store.title, folder, [file.name for file in chosen], config.model_checksum)


def locate_tokenizer(config: EngineConfig, model: Path, progress: StartupProgress | None = None) -> Path:
    """The folder or .gguf file whose tokenizer is used: the model's own unless --tokenizer names another.

    Without `progress` nobody is told of a download; there is none where it was fetched before.

    Raises:
        StartupError: it is nowhere, or cannot be fetched.
    """
    from octavo_server.sources.hub import fetch_model

    if config.tokenizer is None:
        return model
    source = parse_source(config.tokenizer)
    if isinstance(source, Path):
        return source
    if not isinstance(source, HubModel):
        raise ConfigError(
            f"--tokenizer is a folder, a .gguf file or a name on the hub, and not {config.tokenizer[:200]}"
        )
    if progress is None:
        return fetch_model(source, on_bytes=lambda *_: None, files=TEXT_FILES)
    progress.enter("downloading")
    return fetch_model(source, on_bytes=progress.add_bytes, files=TEXT_FILES)


def with_revision(source: HubModel, revision: str | None) -> HubModel:
    """`source` at `revision`, unless it names one itself.

    Raises:
        ConfigError: both name one, and not the same.
    """
    if revision is None or source.revision == revision:
        return source
    if source.revision is not None:
        raise ConfigError(f"--revision {revision} contradicts @{source.revision} in the model's name; leave one out")
    return replace(source, revision=revision)
