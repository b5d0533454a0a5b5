"""Milliseconds of a piece of work: on a GPU by events around a CUDA graph of it, for the host is slower than small kernels, with
the cache emptied between the rounds; by the clock on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

_FLUSH_BYTES = 256 * 2**20
"""More than the second-level cache of any GPU that we know."""


def milliseconds(
    work: Callable[[], object], device: torch.device, rounds: int = 20, *, is_replayed: bool = True
) -> float:
    """The median of `rounds`, after two that do not count (the first compiles); launched one by one unless `is_replayed`."""
    for _ in range(2):
        work()
    if device.type == "cpu":
        return median(_by_clock(work) for _ in range(min(rounds, 3)))
    run = _recorded(work, device) if is_replayed else work
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)
    starts, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(rounds)] for _ in range(2))  # type: ignore[no-untyped-call] # torch's
    for start, end in zip(starts, ends, strict=True):
        flush.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize(device)
    return median(float(start.elapsed_time(end)) for start, end in zip(starts, ends, strict=True))


def _recorded(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type != "cpu":
        torch.cuda.synchronize(device)


def _by_clock(work: Callable[[], object]) -> float:
    started = perf_counter()
    work()
    return 1000 * (perf_counter() - started)
