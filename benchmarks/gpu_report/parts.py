"""The parts of the report, and how one runs: in its own process, as `python -m benchmarks.gpu_report.parts PART DIR SIZE SECONDS`."""

from __future__ import annotations

import platform
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.gpu_report.record import PartRecord

if TYPE_CHECKING:
    import torch

    from octavo_kernels.backend import KernelBackend


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What it is about, and the seconds after which it is ended."""

    title: str
    budget_s: float


PARTS = {
    "limits": Part(title="What the device can do", budget_s=40),
    "kernel-checks": Part(title="Kernels against their references", budget_s=100),
    "model-checks": Part(title="Small models against the reference", budget_s=80),
    "kernels": Part(title="Kernels against the limits", budget_s=60),
    "engine-llama-8b": Part(title="Engine, Llama 8B", budget_s=120),
    "engine-qwen3-0.6b": Part(title="Engine, Qwen3 0.6B", budget_s=60),
    "engine-qwen3-moe": Part(title="Engine, Qwen3 30B-A3B", budget_s=70),
}
"""530 seconds in all."""

END_BEFORE_S = 15.0
"""A part that can stop by itself does so this long before it would be ended."""


def backend_on(device: torch.device) -> KernelBackend:
    """Triton's; on a CPU the reference, since the interpreter would take minutes for what is no speed anyway."""
    if device.type == "cpu":
        from octavo_kernels.torch_backend import TorchBackend

        return TorchBackend(device)
    from octavo_kernels.triton_backend import TritonBackend

    return TritonBackend(device)


def run_part(name: str, record: PartRecord, device: torch.device, budget_s: float) -> None:
    """Measures; figures go into `record` as they come."""
    from benchmarks.gpu_report import engine_speed, kernel_checks, kernel_speed, limits, model_checks

    whole = {
        "limits": limits.run,
        "kernel-checks": kernel_checks.run,
        "model-checks": model_checks.run,
        "kernels": kernel_speed.run,
    }
    if name in whole:
        whole[name](record, device)
        return
    deadline_s = perf_counter() + budget_s - END_BEFORE_S
    engine_speed.run(record, device, name.removeprefix("engine-"), deadline_s)


def main(argv: list[str]) -> int:
    """argv: the part, the folder, "tiny" or "full", and the seconds that it has."""
    name, folder, size, budget_s = argv
    started = perf_counter()
    record = PartRecord(part=name, path=Path(folder) / f"{name}.json", is_tiny=size == "tiny")
    record.save()
    try:
        import torch

        if record.is_tiny:
            device = torch.device("cpu")
            record.device = f"{platform.machine()} processor; kernels in Triton's interpreter"
        else:
            device = torch.device("cuda", torch.cuda.current_device())
            record.device = torch.cuda.get_device_name(device)
        run_part(name, record, device, float(budget_s))
        record.status = "done"
    except Exception:  # noqa: BLE001  # whatever it is, it is this part's result
        record.status, record.error = "failed", traceback.format_exc()
    record.seconds = perf_counter() - started
    record.save()
    return 0 if record.is_good else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
