"""What one part found, written to disk after each figure, so that a part that is cut off keeps what it had."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks import ROOT

Status = Literal["running", "done", "failed"]

_SOURCES = ("benchmarks/gpu_report", "kernels/octavo_kernels", "server/octavo_server", "tests/octavo_testing")
"""All code that a figure may depend on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number, or one check."""

    name: str
    value: float
    unit: str
    note: str = ""
    is_right: bool = True
    """False: a check that did not hold."""
    flop_per_byte: float = 0.0
    """Of a kernel's point under the roof, with the TFLOP/s that it reached; 0: it is none."""
    tflop_per_s: float = 0.0


def check(name: str, *, error: float, tolerance: float, unit: str = "error") -> Figure:
    """A figure that is right where error <= tolerance (and is a number)."""
    note = f"at most {tolerance:g}"
    return Figure(name=name, value=error, unit=unit, note=note, is_right=error <= tolerance)


@dataclass(slots=True, kw_only=True)
class PartRecord:
    """A part's file. `error` is a traceback, or how the process ended."""

    part: str
    path: Path
    is_tiny: bool
    source: str = ""
    """`source_digest()` of what was measured."""
    device: str = ""
    status: Status = "running"
    seconds: float = 0.0
    error: str = ""
    figures: list[Figure] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    """What this part would have measured were it built or installed, each with the reason."""

    def figure(
        self, name: str, value: float, unit: str, note: str = "", *, roof: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        """Notes a measured number; roof: its FLOP a byte and TFLOP/s, for the picture."""
        intensity, rate = roof
        self.add(Figure(name=name, value=value, unit=unit, note=note, flop_per_byte=intensity, tflop_per_s=rate))

    def add(self, figure: Figure) -> None:
        self.figures.append(figure)
        self.save()

    def take(self, name: str, found: Iterable[Figure] | Exception) -> None:
        """Notes checks that were made together under a name, or that what made them raised."""
        if isinstance(found, Exception):
            text = " ".join(f"{type(found).__name__}: {found}".split())
            found = [Figure(name=name, value=float("inf"), unit="error", note=text[:500], is_right=False)]
        for figure in found:
            self.add(figure)

    def lacks(self, what: str, reason: str) -> None:
        """Notes that there is no figure of `what`, and why."""
        self.absent.append(f"{what}: {reason}")
        self.save()

    def save(self) -> None:
        write_whole(self.path, json.dumps(self.as_json(), indent=2) + "\n")

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


def write_whole(path: Path, text: str) -> None:
    """In one replacement, so that a reader never sees half."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def source_digest(folders: Iterable[str] = _SOURCES, root: Path = ROOT) -> str:
    """Sixteen hexadecimal digits that change with any of the code: figures of two states of it are no one report."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
