"""From what names a model to its sizes: a folder, a config.json, a GGUF file, or a place that it is fetched from."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from octavo_server.errors import ConfigError, StartupError
from octavo_server.models.config import parse_model_config, read_model_config
from octavo_server.models.config_fields import ConfigFields
from octavo_server.models.gguf_weights import GGUFWeights
from octavo_server.models.location import ModelLocation, read_json, resolve_location
from octavo_server.models.registry import FAMILIES
from octavo_server.plan.architectures import RECIPES, planned_shape
from octavo_server.plan.model_shape import ModelShape, served_shape
from octavo_server.plan.remote import fetch_description
from octavo_server.sources.uri import HubModel, parse_source

if TYPE_CHECKING:
    from octavo_server.config import EngineConfig


def read_shape(config: EngineConfig) -> ModelShape:
    """The sizes of `config.model`; of one that lies elsewhere only what describes it is fetched.

    Raises:
        StartupError: it is nowhere, cannot be read, or is of an architecture that nobody knows.
    """
    source = parse_source(config.model)
    if config.revision is not None and not isinstance(source, HubModel):
        raise ConfigError(f"--revision is for models of the hub, which {config.model[:200]} is not; leave it out")
    if isinstance(source, HubModel):
        source = _pinned(source, config.revision)
    if not isinstance(source, Path):
        with TemporaryDirectory(prefix="octavo-plan-") as folder:
            return shape_at(resolve_location(fetch_description(source, Path(folder))))
    path = source.expanduser()
    if path.is_file() and path.suffix == ".json":
        return parse_shape(read_json(path), source=str(path))
    return shape_at(resolve_location(path))


def shape_at(location: ModelLocation) -> ModelShape:
    """Of a folder with config.json, or of a GGUF file."""
    if location.is_gguf:
        config = read_model_config(location)
        return served_shape(config, GGUFWeights(location.path, config).stored_bits())
    path = location.path / "config.json"
    return parse_shape(read_json(path), source=str(path))


def parse_shape(raw: dict[str, Any], *, source: str) -> ModelShape:
    """Of the object that config.json holds.

    Raises:
        StartupError: UnsupportedArchitecture, naming the nearest that is known and all, or ModelInvalid.
    """
    names = ConfigFields(raw, source).names("architectures") or []
    for name in names:
        if name in FAMILIES:
            return served_shape(parse_model_config(raw, {}, source=source))
        if name in RECIPES:
            return planned_shape(name, raw, source=source)
    named = ", ".join(names) or f"model_type {raw.get('model_type')!r}"
    near = difflib.get_close_matches(names[0], [*FAMILIES, *RECIPES], n=1) if names else []
    hint = f"the nearest is {near[0]}; " if near else ""
    raise StartupError(
        "UnsupportedArchitecture",
        f"{source} names {named}; {hint}served are {', '.join(sorted(FAMILIES))}; planned without being served "
        f"{', '.join(sorted(RECIPES))}",
    )


def _pinned(source: HubModel, revision: str | None) -> HubModel:
    if revision is not None and source.revision not in (None, revision):
        raise ConfigError(f"--revision {revision} contradicts @{source.revision} in the model's name; leave one out")
    return replace(source, revision=source.revision or revision)
