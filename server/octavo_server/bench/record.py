"""The one shape of every result file: what was measured, how, on what, with which model, and how well it answered.

format       1
command      "bench serve"
circumstances  when, and how busy the machine was
environment  versions, processor, devices (of this process; see `server` for one that is elsewhere)
model        name, revision, sha256 of each file
workload     what was asked: the flags
engine       what was chosen: the settings of the engine
resolved     what followed from that: kernels, context, blocks
server       of a server over HTTP: what it says of itself
prompts      sha256 of all, histograms of lengths
results      one a level: its name and measures, each whole
quality      sample answers and the log-probabilities of a fixed text; null where not asked for
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import octavo_server
from octavo_server.environment import circumstances, commit, environment
from octavo_server.errors import ConfigError, OctavoError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from octavo_server.bench.stats import Measure

FORMAT = 1
_MODEL_FILES = ("*.gguf", "*.safetensors", "*.json", "*.jinja", "tokenizer.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One level of load, batch or kind of start."""

    name: str
    measures: Mapping[str, Measure]
    counts: Mapping[str, Any] = field(default_factory=dict)
    """Figures that are compared with nothing: requests, failures, tokens."""

    def as_json(self) -> dict[str, Any]:
        measures = {name: measure.as_json() for name, measure in self.measures.items()}
        return {"name": self.name, **self.counts, "measures": measures}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A run of one command."""

    command: str
    workload: Mapping[str, Any]
    results: Sequence[Result]
    model: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    resolved: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)
    prompts: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, Any] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    """What the person says of the run (--metadata)."""

    def as_json(self) -> dict[str, Any]:
        around = environment()
        around["versions"]["octavo_commit"] = commit(Path(octavo_server.__file__).parent)
        return {
            "format": FORMAT,
            "command": self.command,
            "circumstances": circumstances(),
            "environment": around,
            "model": dict(self.model),
            "workload": dict(self.workload),
            "engine": dict(self.engine),
            "resolved": dict(self.resolved),
            "server": dict(self.server),
            "notes": dict(self.notes),
            "prompts": dict(self.prompts),
            "results": [result.as_json() for result in self.results],
            "quality": self.quality,
        }


def describe_model(name: str, location: Path | None) -> dict[str, Any]:
    """Name, revision and the hash of each file; without a location on this machine, the name alone."""
    if location is None or not location.exists():
        return {"name": name}
    files = (
        [location]
        if location.is_file()
        else sorted({path for pattern in _MODEL_FILES for path in location.glob(pattern) if path.is_file()})
    )
    return {"name": name, "revision": _revision(location), "files": {path.name: sha256_of(path) for path in files}}


def sha256_of(path: Path) -> str:
    """Of its bytes; a file of the hub's cache that git LFS keeps is called by its hash."""
    target = path.resolve()
    if target.parent.name == "blobs" and len(target.name) == 64:
        return target.name
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_record(path: str, content: Mapping[str, Any]) -> None:
    """Writes it where `path` is not empty.

    Raises:
        OctavoError: it cannot be written.
    """
    if not path:
        return
    try:
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OctavoError(f"cannot write --json {path}: {error.strerror}") from error


def read_record(path: str) -> dict[str, Any]:
    """An earlier run.

    Raises:
        ConfigError: it cannot be read, or is of another shape.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"cannot read the result file {path}: {error}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ConfigError(f"{path} has format {found}, this version reads {FORMAT}; measure again with --json")
    return dict(content)


def _revision(location: Path) -> str:
    """The commit on the hub, where the folder is one of its cache's snapshots."""
    parts = location.absolute().parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else ""
