"""Milliseconds of a piece of work: by events on a GPU, with its cache emptied between the rounds; by the clock on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

_FLUSH_BYTES = 256 * 2**20
"""More than the second-level cache of any GPU that we know."""


def milliseconds(work: Callable[[], object], device: torch.device, rounds: int = 20) -> float:
    """The median of `rounds`, after two that do not count (the first compiles)."""
    for _ in range(2):
        work()
    if device.type == "cpu":
        return median(_by_clock(work) for _ in range(min(rounds, 3)))
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)
    starts, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(rounds)] for _ in range(2))  # type: ignore[no-untyped-call] # torch's
    for start, end in zip(starts, ends, strict=True):
        flush.zero_()
        start.record()
        work()
        end.record()
    torch.cuda.synchronize(device)
    return median(float(start.elapsed_time(end)) for start, end in zip(starts, ends, strict=True))


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type != "cpu":
        torch.cuda.synchronize(device)


def _by_clock(work: Callable[[], object]) -> float:
    started = perf_counter()
    work()
    return 1000 * (perf_counter() - started)
