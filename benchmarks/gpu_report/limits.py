"""What this device can do at best: bytes copied and bfloat16 products, each a second. All else is told as a share of these."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from benchmarks.gpu_report.timing import milliseconds

if TYPE_CHECKING:
    from benchmarks.gpu_report.record import PartRecord


def copy_rate(device: torch.device, *, is_tiny: bool) -> float:
    """GB/s, each byte counted when read and again when written."""
    num_bytes = 2**20 if is_tiny else 2**31
    source = torch.zeros(num_bytes, dtype=torch.int8, device=device)
    destination = torch.empty_like(source)
    # Not as a graph, in which a copy is another engine's.
    return 2 * num_bytes / milliseconds(lambda: destination.copy_(source), device, is_replayed=False) / 1e6


def product_rate(device: torch.device, *, is_tiny: bool) -> float:
    """TFLOP/s of a square bfloat16 product."""
    size = 64 if is_tiny else 8192
    left = torch.randn(size, size, device=device).bfloat16()
    return 2 * size**3 / milliseconds(lambda: left @ left, device) / 1e9


def run(record: PartRecord, device: torch.device) -> None:
    record.figure("copy", copy_rate(device, is_tiny=record.is_tiny), "GB/s", "read and written")
    record.figure("bf16 product", product_rate(device, is_tiny=record.is_tiny), "TFLOP/s", "cuBLAS")
