"""Percentiles and the table that `octavo bench` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PERCENTILES = (50, 90, 95, 99)

Better = Literal["higher", "lower"]
Rounds = list[list[list[float]]]
"""Round → request → its values: one, or a gap each between two tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One quantity as it was measured, kept whole, so that a later run can be compared with it."""

    unit: str
    better: Better
    rounds: Rounds

    @property
    def by_round(self) -> list[float]:
        """Of a rate: its value in each round."""
        return [value for round_ in self.rounds for request in round_ for value in request]

    @property
    def values(self) -> list[float]:
        """All of them, in ascending order."""
        return sorted(pooled(self.rounds))

    def percentile(self, percent: float) -> float | None:
        return percentile(self.values, percent)

    def as_json(self) -> dict[str, Any]:
        """Percentiles, mean and maximum, and what they are of."""
        values = self.values
        return {
            "unit": self.unit,
            "better": self.better,
            **{f"p{percent}": _rounded(percentile(values, percent)) for percent in PERCENTILES},
            "mean": _rounded(sum(values) / len(values) if values else None),
            "max": _rounded(values[-1] if values else None),
            "rounds": [[[_rounded(value) for value in request] for request in round_] for round_ in self.rounds],
        }


def of_rounds(values: Sequence[float], unit: str, better: Better) -> Measure:
    """A quantity of which each round gives one, such as a rate."""
    return Measure(unit=unit, better=better, rounds=[[[value]] for value in values])


def pooled(rounds: Sequence[Sequence[Sequence[float]]]) -> Iterator[float]:
    """The values of all requests of all rounds."""
    return (value for round_ in rounds for request in round_ for value in request)


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """Linear interpolation between the two nearest ranks, as numpy's default; None of nothing."""
    if not len(ordered):
        return None
    rank = (len(ordered) - 1) * percent / 100
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def histogram(lengths: Sequence[int]) -> dict[str, int]:
    """How many lengths are in each range between powers of two, "33-64" for 33 to 64."""
    counts: dict[int, int] = {}
    for length in lengths:
        top = 1 << max(0, length - 1).bit_length()
        counts[top] = counts.get(top, 0) + 1
    return {f"{top // 2 + 1}-{top}" if top > 1 else "0-1": counts[top] for top in sorted(counts)}


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns padded to their widest cell, numbers to the right."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _rounded(value: float | None) -> float | None:
    """Five figures: more were noise, and files grow by them."""
    return None if value is None else float(f"{value:.5g}")
