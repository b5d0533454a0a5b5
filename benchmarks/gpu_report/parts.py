"""The parts of the report, and how one runs: in its own process, as `python -m benchmarks.gpu_report.parts RECORD SECONDS`."""

from __future__ import annotations

import platform
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.gpu_report.record import read_record

if TYPE_CHECKING:
    import torch

    from benchmarks.gpu_report.record import PartRecord
    from octavo_kernels.backend import KernelBackend


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What it is about, and the seconds after which it is ended."""

    title: str
    budget_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePart(Part):
    """A model's shape through scheduler, runner and kernels."""

    shape: str
    quantization: str = "none"
    """As `--quantization`; none: bfloat16."""
    also: tuple[str, ...] = ()
    """Quantizations of which a few decodes are measured after it."""
    has_ragged: bool = False
    """Also 256 requests of 100 to 1,024 tokens."""


PARTS: dict[str, Part] = {
    "kernel-checks": Part(title="Kernels against their references", budget_s=60),
    "model-checks": Part(title="Small models against the reference", budget_s=55),
    "limits": Part(title="What the device can do", budget_s=15),
    "kernels": Part(title="Kernels against the limits", budget_s=35),
    "engine-llama-8b": EnginePart(title="Engine, Llama 8B, bf16", budget_s=85, shape="llama-8b"),
    "transformers": Part(title="Beside transformers' continuous batching, Llama 8B", budget_s=50),
    "start-up": Part(title="Start of the server, Llama 8B", budget_s=60),
    "engine-qwen3-0.6b": EnginePart(
        title="Engine, Qwen3 0.6B", budget_s=55, shape="qwen3-0.6b", also=("fp8", "int4"), has_ragged=True
    ),
    "engine-llama-8b-fp8": EnginePart(title="Engine, Llama 8B, FP8", budget_s=50, shape="llama-8b", quantization="fp8"),
    "engine-llama-8b-int4": EnginePart(
        title="Engine, Llama 8B, W4A16", budget_s=35, shape="llama-8b", quantization="int4"
    ),
    "engine-qwen3-moe": EnginePart(title="Engine, Qwen3 30B-A3B", budget_s=35, shape="qwen3-moe", also=("fp8", "int4")),
}
"""In the order of their worth: what is wrong need not be fast. 535 seconds in all."""

END_BEFORE_S = 15.0
"""A part that can stop by itself does so this long before it would be ended."""


def backend_on(device: torch.device, *, is_batch_invariant: bool = False) -> KernelBackend:
    """Triton's; on a CPU the reference, since the interpreter would take minutes for what is no speed anyway."""
    if device.type == "cpu":
        from octavo_kernels.torch_backend import TorchBackend

        return TorchBackend(device, is_batch_invariant=is_batch_invariant)
    from octavo_kernels.triton_backend import TritonBackend

    return TritonBackend(device, is_batch_invariant=is_batch_invariant)


def run_part(record: PartRecord, device: torch.device, limit_s: float) -> None:
    """Measures; figures go into `record` as they come."""
    from benchmarks.gpu_report import engine_speed, kernel_checks, kernel_speed, limits, model_checks, peer, startup

    whole = {
        "limits": limits.run,
        "kernel-checks": kernel_checks.run,
        "model-checks": model_checks.run,
        "kernels": kernel_speed.run,
        "transformers": peer.run,
        "start-up": startup.run,
    }
    part = PARTS[record.part]
    if isinstance(part, EnginePart):
        engine_speed.run(record, device, part, perf_counter() + limit_s - END_BEFORE_S)
    else:
        whole[record.part](record, device)


def main(argv: list[str]) -> int:
    """argv: the part's record as it was begun, and the seconds that it has."""
    path, limit_s = argv
    started = perf_counter()
    record = read_record(Path(path))
    assert record is not None, "whoever starts a part writes its record first"
    try:
        import torch

        if record.is_tiny:
            device = torch.device("cpu")
            record.device = f"{platform.machine()} processor; kernels in Triton's interpreter"
        else:
            device = torch.device("cuda", torch.cuda.current_device())
            record.device = torch.cuda.get_device_name(device)
        run_part(record, device, float(limit_s))
        record.status = "done"
    except Exception:  # noqa: BLE001  # whatever it is, it is this part's result
        record.status, record.error = "failed", traceback.format_exc()
    record.seconds = perf_counter() - started
    record.save()
    return 0 if record.is_good else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
