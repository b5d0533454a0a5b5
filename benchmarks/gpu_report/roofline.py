"""The kernels under the device's roof: `python -m benchmarks.gpu_report.roofline DIR` reads DIR/report.json, writes DIR/roofline.svg.

What a kernel can reach is bounded by the bytes that it moves and by the products that it makes: TFLOP/s are at most
min(copy rate * FLOP a byte, product rate), both measured in the same report.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import floor, log10
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.gpu_report.record import write_whole

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 900, 560, 70, 50
_LEAST_X, _MOST_X = 0.1, 1e5
"""FLOP a byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A kernel at one size."""

    name: str
    flop_per_byte: float
    tflop_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """Of one device."""

    device: str
    gigabytes_per_s: float
    tflop_per_s: float

    def at(self, flop_per_byte: float) -> float:
        """TFLOP/s at most."""
        return min(self.gigabytes_per_s * flop_per_byte / 1000, self.tflop_per_s)


class NoRoofError(Exception):
    """The report does not hold what the picture is made of."""


def read(report: dict[str, Any]) -> tuple[Roof, list[Point]]:
    """Of the text of report.json.

    Raises:
        NoRoofError: a part is missing, and which.
    """
    parts = {part["part"]: part for part in report["parts"]}
    limits = {figure["name"]: figure["value"] for figure in parts.get("limits", {"figures": []})["figures"]}
    points = [
        Point(name=figure["name"], flop_per_byte=figure["flop_per_byte"], tflop_per_s=figure["tflop_per_s"])
        for figure in parts.get("kernels", {"figures": []})["figures"]
        if figure.get("flop_per_byte")
    ]
    if not {"copy", "bf16 product"} <= limits.keys() or not points:
        raise NoRoofError("the report lacks limits or kernels; run --only limits,kernels first")
    device = parts["limits"]["device"]
    return Roof(device=device, gigabytes_per_s=limits["copy"], tflop_per_s=limits["bf16 product"]), points


def svg(roof: Roof, points: list[Point]) -> str:
    """Both axes logarithmic; each point says what share of the roof above it it reaches."""
    floor_y = 10.0 ** floor(log10(min(roof.at(_LEAST_X), *(point.tflop_per_s for point in points))))
    top_y = 2 * max(roof.tflop_per_s, *(point.tflop_per_s for point in points))

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 20) * log10(value / _LEAST_X) / log10(_MOST_X / _LEAST_X)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - 40) * log10(value / floor_y) / log10(top_y / floor_y)

    ridge = roof.tflop_per_s / roof.gigabytes_per_s * 1000
    edge = " ".join(
        f"{x(at):.1f},{y(roof.at(at)):.1f}" for at in (_LEAST_X, min(max(ridge, _LEAST_X), _MOST_X), _MOST_X)
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="22">{escape(roof.device)}: {roof.gigabytes_per_s:.0f} GB/s, {roof.tflop_per_s:.3g} TFLOP/s '
        "in bf16, both measured</text>",
        *(_label(x(value), _HEIGHT - _BOTTOM + 18, f"{value:g}", "middle") for value in _decades(_LEAST_X, _MOST_X)),
        *(_label(_LEFT - 6, y(value) + 4, f"{value:g}", "end") for value in _decades(floor_y, top_y)),
        _label(_WIDTH / 2, _HEIGHT - 10, "FLOP a byte", "middle"),
        f'<text x="14" y="{_HEIGHT / 2}" transform="rotate(-90 14 {_HEIGHT / 2})" text-anchor="middle">TFLOP/s</text>',
        f'<polyline points="{edge}" fill="none" stroke="black"/>',
    ]
    for point in points:
        share = 100 * point.tflop_per_s / roof.at(point.flop_per_byte)
        at_x, at_y = x(min(max(point.flop_per_byte, _LEAST_X), _MOST_X)), y(point.tflop_per_s)
        lines.append(f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="4" fill="#2a6fbb"/>')
        lines.append(_label(at_x + 7, at_y + 4, f"{point.name}: {share:.0f} %", "start"))
    return "\n".join([*lines, "</svg>", ""])


def main(argv: list[str]) -> int:
    """argv: the report's folder."""
    (folder,) = map(Path, argv)
    try:
        roof, points = read(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    except (NoRoofError, OSError) as error:
        print(f"{folder}: {error}", file=sys.stderr)
        return 1
    write_whole(folder / "roofline.svg", svg(roof, points))
    print(folder / "roofline.svg")
    return 0


def _decades(least: float, most: float) -> Iterator[float]:
    value = least
    while value <= most * 1.001:
        yield value
        value *= 10


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
