"""From what `--model` and `--tokenizer` name to files on this machine, fetched where that means the hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from octavo_server.errors import ConfigError
from octavo_server.sources.uri import HubModel, parse_source

if TYPE_CHECKING:
    from octavo_server.config import EngineConfig
    from octavo_server.engine.startup import StartupProgress


def locate_model(config: EngineConfig, progress: StartupProgress) -> Path:
    """The model's folder or .gguf file.

    Raises:
        StartupError: it is nowhere, or cannot be fetched.
    """
    from octavo_server.models.location import resolve_location
    from octavo_server.sources.hub import TEXT_FILES, WEIGHT_FILES, fetch_model

    source = parse_source(config.model)
    if isinstance(source, Path):
        if config.revision is not None:
            raise ConfigError(f"--revision is for models of the hub, {config.model} is on this machine; leave it out")
        # Before torch is imported: a typing error should not take seconds to be told.
        return resolve_location(source).path
    progress.enter("downloading")
    # Random weights stand in for the files, which are most of what would be fetched.
    files = TEXT_FILES if config.load_format == "dummy" else TEXT_FILES + WEIGHT_FILES
    return fetch_model(with_revision(source, config.revision), on_bytes=progress.add_bytes, files=files)


def locate_tokenizer(config: EngineConfig, model: Path, progress: StartupProgress | None = None) -> Path:
    """The folder or .gguf file whose tokenizer is used: the model's own unless --tokenizer names another.

    Without `progress` nobody is told of a download; there is none where it was fetched before.

    Raises:
        StartupError: it is nowhere, or cannot be fetched.
    """
    from octavo_server.sources.hub import TEXT_FILES, fetch_model

    if config.tokenizer is None:
        return model
    source = parse_source(config.tokenizer)
    if isinstance(source, Path):
        return source
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
