"""Files → ModelDeployments, by the operator's own rules; every problem of every file is told at once."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from octavo_cli.errors import CliError
from octavo_operator.api.types import ModelDeployment
from octavo_operator.api.validation import parse_model_deployment
from octavo_operator.errors import SpecInvalidError


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One ModelDeployment as it was written, and as a value."""

    raw: dict[str, Any]
    resource: ModelDeployment

    @property
    def key(self) -> str:
        return f"{self.resource.namespace}/{self.resource.name}"


def load_manifests(paths: Sequence[str]) -> list[Manifest]:
    """All documents of all files; ``-`` is standard input."""
    manifests: list[Manifest] = []
    problems: list[str] = []
    for path in paths:
        for number, document in enumerate(_documents(path), start=1):
            where = f"{path}, document {number}"
            try:
                manifests.append(Manifest(raw=document, resource=parse_model_deployment(document, creating=True)))
            except SpecInvalidError as error:
                problems += [f"{where}: {problem}" for problem in error.problems]
    problems += _clashes(manifests)
    if problems:
        raise CliError("\n       ".join(problems))
    if not manifests:
        raise CliError(f"{', '.join(paths)}: no ModelDeployment in there")
    return manifests


def _documents(path: str) -> Iterable[Any]:
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        return [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise CliError(f"{path} is not YAML: {error}") from error


def _clashes(manifests: Sequence[Manifest]) -> list[str]:
    """Two resources of one name, or of one served name: nobody is older here, so neither wins."""
    owners: dict[str, str] = {}
    seen: set[str] = set()
    problems = []
    for manifest in manifests:
        if manifest.key in seen:
            problems.append(f"{manifest.key} is there twice")
            continue
        seen.add(manifest.key)
        for name in manifest.resource.served_names:
            owner = owners.setdefault(name, manifest.key)
            if owner != manifest.key:
                problems.append(f"the served name {name!r} is claimed by {owner} and by {manifest.key}")
    return problems
