"""What one part found, written to disk after each figure, so that a part that is cut off keeps what it had."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["running", "done", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number, or one check."""

    name: str
    value: float
    unit: str
    note: str = ""
    is_right: bool = True
    """False: a check that did not hold."""


@dataclass(slots=True, kw_only=True)
class PartRecord:
    """A part's file. `error` is a traceback, or how the process ended."""

    part: str
    path: Path
    is_tiny: bool
    device: str = ""
    status: Status = "running"
    seconds: float = 0.0
    error: str = ""
    figures: list[Figure] = field(default_factory=list)

    def figure(self, name: str, value: float, unit: str, note: str = "") -> None:
        """Notes a measured number."""
        self.figures.append(Figure(name=name, value=value, unit=unit, note=note))
        self.save()

    def check(self, name: str, *, error: float, tolerance: float, unit: str = "error") -> None:
        """Notes a check, which holds where error <= tolerance (and is a number)."""
        note = f"at most {tolerance:g}"
        self.figures.append(Figure(name=name, value=error, unit=unit, note=note, is_right=error <= tolerance))
        self.save()

    def save(self) -> None:
        """Writes all, in one replacement, so that a reader never sees half."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(self.as_json(), indent=2) + "\n", encoding="utf-8")
        fresh.replace(self.path)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": self.path.name}

    @property
    def is_good(self) -> bool:
        return self.status == "done" and all(figure.is_right for figure in self.figures)


def read_record(path: Path) -> PartRecord | None:
    """What is on disk; None where there is nothing, or no whole record."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        figures = [Figure(**figure) for figure in raw.pop("figures")]
        return PartRecord(**{**raw, "path": path, "figures": figures})
    except (OSError, ValueError, KeyError, TypeError):
        return None
