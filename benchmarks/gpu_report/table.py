"""The report's text: each figure beside the bar that it is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.gpu_report.record import Figure, PartRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What is aimed at on one H200."""

    value: float
    is_least: bool = True
    """False: at most `value`."""

    def holds(self, value: float) -> bool:
        return value >= self.value if self.is_least else value <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.is_least else '≤'} {self.value:g}"


BARS = {
    ("kernels", "decode attention, 64 x 4k"): Bar(value=90),
    ("kernels", "decode attention, skewed"): Bar(value=80),
    ("kernels", "prefill attention, 1 x 8192"): Bar(value=400),
    ("kernels", "prefill attention, 4 x 2048"): Bar(value=400),
    ("engine-llama-8b", "decode 1"): Bar(value=245),
    ("engine-llama-8b", "context token"): Bar(value=3.4e-5, is_least=False),
    ("engine-llama-8b", "host gap"): Bar(value=3, is_least=False),
    ("engine-llama-8b", "saturation"): Bar(value=12_000),
    ("engine-qwen3-0.6b", "decode 1"): Bar(value=1_100),
    ("engine-qwen3-0.6b", "host gap"): Bar(value=3, is_least=False),
    ("engine-qwen3-moe", "host gap"): Bar(value=3, is_least=False),
}
"""By part and figure."""

NOT_BUILT = ("CUDA graphs", "FP8", "W4A16", "comparison with transformers' continuous batching")
"""What the report will measure once it is there."""


def report(records: Sequence[PartRecord], titles: dict[str, str]) -> str:
    """Markdown."""
    lines = ["# GPU report", ""]
    if any(record.is_tiny for record in records):
        lines += ["**Toy sizes on a CPU: this shows that the report runs and says nothing about speed.**", ""]
    for record in records:
        lines += [
            f"## {titles[record.part]}",
            "",
            f"{record.status} after {record.seconds:.0f} s on {record.device}",
            "",
        ]
        if record.figures:
            lines += ["| what | figure | bar (one H200) | |", "|---|---|---|---|"]
            lines += [_row(record, figure) for figure in record.figures]
            lines.append("")
        if record.error:
            lines += ["```", record.error.rstrip(), "```", ""]
    lines += [f"Not built, so not measured: {', '.join(NOT_BUILT)}.", ""]
    return "\n".join(lines)


def _row(record: PartRecord, figure: Figure) -> str:
    bar = None if record.is_tiny else BARS.get((record.part, figure.name))
    verdict = "" if bar is None else f"{bar} {'held' if bar.holds(figure.value) else 'MISSED'}"
    note = figure.note if figure.is_right else f"WRONG: {figure.note}"
    return f"| {figure.name} | {figure.value:.4g} {figure.unit} | {verdict} | {note} |"
