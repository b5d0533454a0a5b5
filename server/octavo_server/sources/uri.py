"""What a person writes to name a model: a path on this machine, or a place on the Hugging Face hub. Pure but for `exists`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from octavo_server.errors import ConfigError

SUPPORTED = "hf://ORG/NAME[/FILE.gguf][@REVISION], file:///PATH"

_HUB = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?P<file>/[\w./-]+\.gguf)?(@(?P<revision>[A-Za-z0-9][\w./-]*))?"
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A repository of the hub, or one file of it."""

    repository: str
    file: str = ""
    """A .gguf file in it; empty: all that serving reads."""
    revision: str | None = None
    """Branch, tag or commit; None: the main branch."""

    @property
    def name(self) -> str:
        """What clients call it when nobody said."""
        return Path(self.file).stem if self.file else self.repository


def parse_source(text: str) -> HubModel | Path:
    """What `text` names: with a scheme what that says; else the hub where it looks like a name there and no file is called so.

    Raises:
        ConfigError: a scheme that is not served, or a name that is none.
    """
    scheme = _SCHEME.match(text)
    if scheme is None:
        hub = _hub_model(text)
        return Path(text) if hub is None or Path(text).exists() else hub
    rest = text[scheme.end() :]
    if scheme[0] == "hf://":
        hub = _hub_model(rest)
        if hub is None:
            raise ConfigError(f"{text[:200]} is no name on the hub; write hf://ORG/NAME[/FILE.gguf][@REVISION]")
        return hub
    if scheme[0] == "file://":
        if not rest.startswith("/"):
            raise ConfigError(f"{text[:200]} is no path; write file:///PATH with three slashes")
        return Path(rest)
    raise ConfigError(f"{scheme[0]} is not supported as a source of models; supported are {SUPPORTED}")


def _hub_model(text: str) -> HubModel | None:
    match = _HUB.fullmatch(text)
    if match is None:
        return None
    return HubModel(
        repository=match["repository"], file=(match["file"] or "").removeprefix("/"), revision=match["revision"]
    )
