"""Files → ModelDeployments, by the operator's own rules; every problem of every file is told at once."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from octavo_cli.errors import CliError
from octavo_operator.api.reader import Problem
from octavo_operator.api.types import ModelDeployment
from octavo_operator.api.validation import parse_model_deployment
from octavo_operator.autoscaling.behavior import read_behavior
from octavo_operator.autoscaling.schedule import check_schedules
from octavo_operator.errors import SpecInvalidError
from octavo_operator.rollout.when import check_window


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One ModelDeployment as it was written, and as a value."""

    raw: dict[str, Any]
    resource: ModelDeployment
    secrets: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    """Entries of the Secrets that access.keysFrom names, by ``NAMESPACE/NAME``."""

    @property
    def key(self) -> str:
        return f"{self.resource.namespace}/{self.resource.name}"


def load_manifests(paths: Sequence[str]) -> list[Manifest]:
    """All ModelDeployments of all files, each with the Secrets of its keys; ``-`` is standard input."""
    manifests: list[Manifest] = []
    problems: list[str] = []
    secrets: dict[str, dict[str, bytes]] = {}
    for path in paths:
        for number, document in enumerate(_documents(path), start=1):
            where = f"{path}, document {number}"
            if isinstance(document, dict) and (document.get("apiVersion"), document.get("kind")) == ("v1", "Secret"):
                try:
                    secrets.update([_secret(document)])
                except (ValueError, TypeError, KeyError, AttributeError):
                    problems.append(f"{where}: no Secret with metadata.name and text in data or stringData")
                continue
            try:
                resource = parse_model_deployment(document, creating=True)
                _check_beyond_schema(resource)
                manifests.append(Manifest(raw=document, resource=resource))
            except SpecInvalidError as error:
                problems += [f"{where}: {problem}" for problem in error.problems]
    problems += _clashes(manifests)
    problems += _missing_secrets(manifests, secrets)
    if problems:
        raise CliError("\n       ".join(problems))
    if not manifests:
        raise CliError(f"{', '.join(paths)}: no ModelDeployment in there")
    return [
        replace(manifest, secrets={name: secrets[name] for name in _key_secrets(manifest)}) for manifest in manifests
    ]


def _check_beyond_schema(resource: ModelDeployment) -> None:
    """What no schema can judge and the operator does; raises SpecInvalidError with every problem.

    None of it does anything here, and all of it would be refused on a cluster.
    """
    checks: list[Callable[[], object]] = [lambda: check_window(resource.spec.rollout.when)]
    scaling = resource.spec.scaling
    if scaling is not None:
        checks += [lambda: check_schedules(scaling), lambda: read_behavior(scaling)]
    problems: list[Problem] = []
    for check in checks:
        try:
            check()
        except SpecInvalidError as error:
            problems += error.problems
    if problems:
        raise SpecInvalidError(tuple(problems))


def _secret(document: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    metadata = document["metadata"]
    entries = {name: base64.b64decode(value, validate=True) for name, value in (document.get("data") or {}).items()}
    entries |= {name: value.encode() for name, value in (document.get("stringData") or {}).items()}
    return f"{metadata.get('namespace') or 'default'}/{metadata['name']}", entries


def _key_secrets(manifest: Manifest) -> list[str]:
    resource = manifest.resource
    return [f"{resource.namespace}/{name}" for name in resource.spec.access.keys_from]


def _missing_secrets(manifests: Iterable[Manifest], secrets: Mapping[str, object]) -> list[str]:
    return [
        f"{manifest.key}: access.keysFrom names the Secret {name}, which is none of these documents; add one of "
        "kind Secret with a key in each entry of stringData"
        for manifest in manifests
        for name in _key_secrets(manifest)
        if name not in secrets
    ]


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
