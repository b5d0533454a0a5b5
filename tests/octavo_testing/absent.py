"""What it is like where packages are missing: importing one raises, as on a machine that does not have it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from importlib.machinery import ModuleSpec

from packaging.requirements import Requirement


class Absent:
    """A finder, to be put first into `sys.meta_path`."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        if name.partition(".")[0] in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def modules_beyond(distributions: Iterable[str]) -> list[str]:
    """Top-level modules installed here that neither those distributions bring nor what they require."""
    present: set[str] = set()
    _add_required(distributions, present)
    owners = {top: {_normal(name) for name in names} for top, names in metadata.packages_distributions().items()}
    return sorted(top for top, names in owners.items() if not names & present)


def _add_required(names: Iterable[str], found: set[str]) -> None:
    for name in map(_normal, names):
        if name in found:
            continue
        try:
            requirements = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        _add_required(
            (each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})), found
        )


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
