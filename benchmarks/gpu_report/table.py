"""The report's text: all aims first, each with its figure or "not measured"; then every figure, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.gpu_report.record import Figure, PartRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What is aimed at on one H200."""

    what: str
    value: float
    unit: str
    is_least: bool = True
    """False: at most `value`."""

    def holds(self, value: float) -> bool:
        return value >= self.value if self.is_least else value <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.is_least else '≤'} {self.value:g} {self.unit}"

    def verdict(self, figure: Figure) -> str:
        return f"{self} {'held' if self.holds(figure.value) else 'MISSED'}"


BARS = {
    ("kernels", "decode attention, 64 x 4k"): Bar(
        what="decode attention, 64 sequences of 4k, Llama 8B", value=90, unit="% of copy"
    ),
    ("kernels", "decode attention, skewed"): Bar(
        what="decode attention, one of 64k and 15 of 4k", value=80, unit="% of copy"
    ),
    ("kernels", "prefill attention, 1 x 8192"): Bar(what="prefill attention, causal", value=400, unit="TFLOP/s"),
    ("kernels", "prefill attention, 4 x 2048"): Bar(
        what="prefill attention, causal, four prompts", value=400, unit="TFLOP/s"
    ),
    ("engine-llama-8b", "decode 1"): Bar(what="Llama 8B, bf16, batch 1, short context", value=245, unit="tok/s"),
    ("engine-llama-8b", "context token"): Bar(
        what="the same, more for each token of context", value=3.4e-5, unit="ms", is_least=False
    ),
    ("engine-llama-8b", "saturation"): Bar(what="Llama 8B, bf16, 1k in, 1k out", value=12_000, unit="tok/s"),
    ("engine-llama-8b-fp8", "saturation"): Bar(what="Llama 8B, FP8, 1k in, 1k out", value=16_000, unit="tok/s"),
    ("engine-llama-8b", "host gap"): Bar(
        what="Llama 8B, GPU idle between steps", value=3, unit="% of a step", is_least=False
    ),
    ("transformers", "ours against transformers"): Bar(
        what="against transformers' continuous batching, which runs as paged SDPA", value=5, unit="x"
    ),
    ("engine-qwen3-0.6b", "decode 1"): Bar(what="Qwen3 0.6B, bf16, batch 1", value=1_100, unit="tok/s"),
    ("engine-qwen3-0.6b", "ragged"): Bar(
        what="Qwen3 0.6B, 256 requests of 100 to 1,024 in and out", value=25_000, unit="tok/s"
    ),
    ("engine-qwen3-0.6b", "host gap"): Bar(
        what="Qwen3 0.6B, GPU idle between steps", value=3, unit="% of a step", is_least=False
    ),
    ("engine-qwen3-moe", "host gap"): Bar(
        what="Qwen3 30B-A3B, GPU idle between steps", value=3, unit="% of a step", is_least=False
    ),
    ("start-up", "warm: ready"): Bar(what="Llama 8B, ready after a warm start", value=10, unit="s", is_least=False),
    ("start-up", "cold: kernels compiled after ready"): Bar(
        what="kernels compiled after ready", value=0, unit="kernels", is_least=False
    ),
}
"""By part and figure, in the order of the report."""


def report(records: Sequence[PartRecord], titles: dict[str, str]) -> str:
    """Markdown."""
    lines = ["# GPU report", ""]
    if any(record.is_tiny for record in records):
        lines += ["**Toy sizes on a CPU: this shows that the report runs and says nothing about speed.**", ""]
    if len({record.source for record in records}) > 1:
        lines += ["**Parts were measured with different states of the code.**", ""]
    lines += _aims(records)
    for record in records:
        lines += _part(record, titles[record.part])
    return "\n".join(lines)


def _aims(records: Sequence[PartRecord]) -> list[str]:
    measured = {
        (record.part, figure.name): figure for record in records if not record.is_tiny for figure in record.figures
    }
    lines = ["## Aims, on one H200", "", "| what | aim | figure |", "|---|---|---|"]
    for key, bar in BARS.items():
        figure = measured.get(key)
        found = (
            f"not measured ({key[0]})"
            if figure is None
            else f"{figure.value:.4g}{'' if bar.holds(figure.value) else ' MISSED'}"
        )
        lines.append(f"| {bar.what} | {bar} | {found} |")
    return [*lines, ""]


def _part(record: PartRecord, title: str) -> list[str]:
    lines = [
        f"## {title}",
        "",
        f"{record.status} after {record.seconds:.0f} s on {record.device or 'no device yet'}",
        "",
    ]
    if record.figures:
        lines += ["| what | figure | aim | |", "|---|---|---|---|"]
        lines += [_row(record, figure) for figure in record.figures]
        lines.append("")
    if record.absent:
        lines += ["Not measured:", "", *(f"- {line}" for line in record.absent), ""]
    if record.error:
        lines += ["```", record.error.rstrip(), "```", ""]
    return lines


def _row(record: PartRecord, figure: Figure) -> str:
    bar = None if record.is_tiny else BARS.get((record.part, figure.name))
    verdict = "" if bar is None else bar.verdict(figure)
    note = figure.note if figure.is_right else f"WRONG: {figure.note}"
    return f"| {figure.name} | {figure.value:.4g} {figure.unit} | {verdict} | {note} |"
