"""Which way a linear layer of few rows is fastest on this device: measured once, at a start, and kept on disk.

The vendor's product and ours take turns by shape and chip, and nothing but a clock says where. `choose` decides and is
given the clock; the rest remembers. One choice serves all numbers of rows up to 16, so that a row's result does not
depend on how many there are. Until something has measured a shape it is computed by the vendor's product.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from octavo_kernels.split_k import SplitTiling

logger = logging.getLogger(__name__)

Choice = SplitTiling | None
"""None: the vendor's product."""

_VERSION = 2
"""Of what the kernels are. Raised with any change that makes old measurements wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearShape:
    """What the choice depends on beside the device."""

    out_features: int
    in_features: int
    dtype: str
    """Of the weight, as "bfloat16"."""

    @property
    def key(self) -> str:
        return f"{self.out_features}x{self.in_features} {self.dtype}"


@dataclass(slots=True, kw_only=True)
class FewRows:
    """How layers of one shape compute few rows: shared by their handles, and changed by tuning alone."""

    shape: LinearShape
    choice: Choice = None


def choose(candidates: Iterable[SplitTiling], seconds: Callable[[Choice], float]) -> Choice:
    """The fastest candidate, the first of several; None where none is faster than the vendor's product.

    Args:
        candidates: ways of ours.
        seconds: what one takes, None being the vendor's; infinite where it cannot be run.
    """
    best, least = None, seconds(None)
    for candidate in candidates:
        taken = seconds(candidate)
        if taken < least:
            best, least = candidate, taken
    return best


class TuningCache:
    """Choices on disk, a file for each device and version. A file that cannot be read or written only costs measuring anew."""

    def __init__(self, folder: Path, device: str, versions: Mapping[str, str]) -> None:
        self._about = {"device": device, "kernels": _VERSION, **versions}
        name = "".join(c if c.isalnum() else "-" for c in "-".join(map(str, self._about.values())))
        self.path = folder / f"{name}.json"
        self._choices = self._read()

    def get(self, shape: LinearShape) -> Choice:
        """What was chosen; None also of a shape that nobody has measured."""
        return self._choices.get(shape.key)

    def has(self, shape: LinearShape) -> bool:
        """Whether it was measured."""
        return shape.key in self._choices

    def keep(self, choices: Mapping[LinearShape, Choice]) -> None:
        """Adds to the file what another process has not added yet."""
        self._choices = {**self._read(), **self._choices, **{shape.key: choice for shape, choice in choices.items()}}
        text = json.dumps(
            {
                "about": self._about,
                "choices": {key: None if tiling is None else asdict(tiling) for key, tiling in self._choices.items()},
            },
            indent=1,
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # whole or not at all: several ranks may write it at once
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as file:
                file.write(text)
            os.replace(file.name, self.path)
        except OSError as error:
            logger.warning("what was measured of linear layers is not kept, each start measures anew: %s", error)

    def _read(self) -> dict[str, Choice]:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            found = json.loads(self.path.read_text())
            if found["about"] == self._about:
                return {
                    key: value if value is None else SplitTiling(**value) for key, value in found["choices"].items()
                }
        return {}


def cache_folder() -> Path:
    """`linear-tuning` in $OCTAVO_CACHE, else in octavo's folder of the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("OCTAVO_CACHE") or Path(home) / "octavo") / "linear-tuning"
