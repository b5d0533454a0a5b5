"""A Python that has some of the packages installed here and no others, as a machine that was set up for less."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def link_packages(names: Iterable[str], folder: Path, without: Collection[str] = ()) -> None:
    """Fills `folder`, for `python -S` with it in PYTHONPATH, with those distributions and all that they require.

    without: what is left out although something requires it.
    """
    for name in _closure(names, set()) - set(without):
        distribution = metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            link = folder / top
            # Several distributions may share a folder.
            if not link.is_symlink():
                link.symlink_to(distribution.locate_file(top))


def _closure(names: Iterable[str], found: set[str]) -> set[str]:
    """`names` and what they require of what is installed here, all added to `found`."""
    for name in map(_normal, names):
        if name not in found and (requirements := _requirements(name)) is not None:
            found.add(name)
            _closure(requirements, found)
    return found


def _requirements(name: str) -> list[str] | None:
    try:
        texts = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return None
    return list(_wanted(map(Requirement, texts)))


def _wanted(requirements: Iterable[Requirement]) -> Iterator[str]:
    for each in requirements:
        if each.marker is None or each.marker.evaluate({"extra": ""}):
            yield each.name


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
