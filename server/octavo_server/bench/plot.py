"""The picture of a run, as SVG: for each measure what share of its values is at or below x, a curve a level.

Written by hand, so that a server's image needs no plotting library; any browser shows it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from octavo_server.errors import ConfigError, OctavoError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from octavo_server.bench.record import Result

# Okabe and Ito's colours, which people with colour blindness tell apart.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000", "#f0e442")
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 360, 220, 50, 40, 70
"""Of a panel, and around it; pixels."""
_COLUMNS, _ROW = 4, _HEIGHT + 70
"""Panels side by side, and pixels from one row of them to the next."""
_MOST_POINTS = 500
"""Of a curve; more are not seen."""


def check_plot(path: str) -> None:
    """Raises ConfigError where `path` is not that of a picture that can be made."""
    if path and Path(path).suffix.lower() != ".svg":
        raise ConfigError(f"--plot {path}: the picture is SVG, so give a name that ends in .svg")


def write_plot(path: str, title: str, results: Sequence[Result]) -> None:
    """Writes the picture where `path` is not empty.

    Raises:
        OctavoError: it cannot be written.
    """
    if not path:
        return
    try:
        Path(path).write_text(picture(title, results), encoding="utf-8")
    except OSError as error:
        raise OctavoError(f"cannot write --plot {path}: {error.strerror}") from error


def picture(title: str, results: Sequence[Result]) -> str:
    """The SVG: a panel a measure, in the order of the first level's, and below them which colour is which level."""
    names = [name for name, measure in results[0].measures.items() if measure.values] if results else []
    width = max(1, min(_COLUMNS, len(names))) * (_WIDTH + _GAP) + _LEFT
    bottom = -(-len(names) // _COLUMNS) * _ROW + _TOP
    height = bottom + 18 * len(results)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    for number, name in enumerate(names):
        row, column = divmod(number, _COLUMNS)
        parts += _panel(name, results, _LEFT + column * (_WIDTH + _GAP), _TOP + row * _ROW)
    for number, result in enumerate(results):
        y = bottom + 18 * number
        parts.append(f'<rect x="{_LEFT}" y="{y - 10}" width="12" height="12" fill="{_colour(number)}"/>')
        parts.append(f'<text x="{_LEFT + 18}" y="{y}">{escape(result.name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(name: str, results: Sequence[Result], left: int, top: int) -> Iterator[str]:
    curves = [result.measures[name].values if name in result.measures else [] for result in results]
    every = [value for curve in curves for value in curve]
    axis = _Axis(min(every), max(every), left)
    bottom = top + _HEIGHT
    yield f'<rect x="{left}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#999"/>'
    for share in (0.0, 0.5, 0.9, 0.99):
        y = bottom - share * _HEIGHT
        yield f'<path d="M{left} {y:.1f}h{_WIDTH}" stroke="#ddd"/>'
        yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>'
    for tick in axis.ticks():
        x = axis.place(tick)
        yield f'<path d="M{x:.1f} {bottom}v5" stroke="#999"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>'
    scale = ", log scale" if axis.is_log else ""
    label = f"{name} ({results[0].measures[name].unit}{scale})"
    yield f'<text x="{left + _WIDTH / 2}" y="{bottom + 36}" text-anchor="middle">{escape(label)}</text>'
    for number, curve in enumerate(curves):
        points = " ".join(f"{axis.place(x):.1f},{bottom - share * _HEIGHT:.1f}" for x, share in _steps(curve))
        yield f'<polyline points="{points}" fill="none" stroke="{_colour(number)}" stroke-width="1.5"/>'


class _Axis:
    """From values to x; logarithmic where they span more than a factor of ten."""

    def __init__(self, low: float, high: float, left: int) -> None:
        self.is_log = low > 0 and high / low > 10
        self._low, self._high, self._left = (low, high, left) if high > low else (low - 0.5, low + 0.5, left)

    def place(self, value: float) -> float:
        low, high = (math.log(end) if self.is_log else end for end in (self._low, self._high))
        at = math.log(value) if self.is_log else value
        return self._left + (at - low) / (high - low) * _WIDTH

    def ticks(self) -> list[float]:
        """Round numbers within the values: 1, 2 and 5 of each decade, or about five steps."""
        if self.is_log:
            decades = range(math.floor(math.log10(self._low)), math.ceil(math.log10(self._high)) + 1)
            every = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
            inside = [tick for tick in every if self._low <= tick <= self._high]
            return inside if len(inside) <= 8 else inside[:: math.ceil(len(inside) / 8)]
        rough = (self._high - self._low) / 4
        size = 10 ** math.floor(math.log10(rough))
        step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough)
        first = math.ceil(self._low / step)
        return [number * step for number in range(first, math.floor(self._high / step) + 1)]


def _steps(values: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Corners of the curve of a sorted sample."""
    every = max(1, len(values) // _MOST_POINTS)
    for rank, value in enumerate(values):
        if rank % every == 0 or rank == len(values) - 1:
            yield value, rank / len(values)
            yield value, (rank + 1) / len(values)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]
