"""The compiled kernels' own threads: asleep between calls, and sharing the work of one by claiming pieces of it.

A kernel is a row of phases, each cut into pieces. A thread claims pieces and does them until none is left, then counts
them as done; the next phase begins when all are. Nobody waits for a thread, only for a piece that one has begun: when
another process takes a core away, the other threads do its share, and a busy machine slows a step in proportion and no
more.

Torch's pool and Numba's stay out of it: their regions cost more than a small layer, and two pools would fight over the
same cores.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from octavo_kernels.numba_compile import IS_X86, part
from octavo_kernels.numba_vector import LONG, WORD, Emitter

logger = logging.getLogger(__name__)

_SPINS = 2000
"""Looks at a counter before a thread lets others run: about 50 µs, and more starves a busy machine."""

_PIECES_PER_THREAD = 4
"""Claiming one costs a tenth of a microsecond, which is much beside one token's product."""

_FIRST_UNITS, _UNITS = 5, 8
"""Of a thread's share of a long phase the first pieces are 5 / 8 each, the others 1 / 8: few claims, a short end."""

_SMALL_PIECES_PER_THREAD = 16
"""Where some items take far longer than others."""

PHASE_BYTES = 128
"""A phase's two counters, claimed and done, each in a cache line of its own."""

_Job = tuple[Callable[..., None], tuple[Any, ...]] | None


class ThreadPool:
    """Runs a kernel in all threads at once, the caller's among them. One call at a time."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._lock = threading.Lock()
        self._jobs: list[SimpleQueue[_Job]] = [SimpleQueue() for _ in range(num_threads - 1)]
        for index, jobs in enumerate(self._jobs, start=1):
            # The thread holds its queue, not the pool, so that a forgotten pool ends its threads.
            threading.Thread(target=_work, args=(index, jobs), name=f"kernels-{index}", daemon=True).start()
        weakref.finalize(self, _end, self._jobs)

    def run(self, kernel: Callable[..., None], num_phases: int, *arguments: Any) -> None:
        """Calls kernel(thread, (num_threads, counters), *arguments) in each thread; returns when all work is done.

        A thread that comes late may still look at the counters after that, so each call has its own.
        """
        with self._lock:
            counters = np.zeros(num_phases * PHASE_BYTES // 8, np.int64)
            shared = ((self.num_threads, counters), *arguments)
            for jobs in self._jobs:
                jobs.put((kernel, shared))
            kernel(0, *shared)


def _end(queues: list[SimpleQueue[_Job]]) -> None:
    for jobs in queues:
        jobs.put(None)


def _work(index: int, jobs: SimpleQueue[_Job]) -> None:
    while (job := jobs.get()) is not None:
        kernel, arguments = job
        try:
            kernel(index, *arguments)
        except Exception:
            # It failed before its first piece, for compiled code raises nothing; the caller does the work alone.
            logger.exception("a thread could not start a kernel")
        del job, kernel, arguments


@part
def num_pieces(count, threads):  # type: ignore[no-untyped-def]
    """Into how many pieces `count` items are cut."""
    return min(count, threads[0] * _PIECES_PER_THREAD)


@part
def num_small_pieces(count, threads):  # type: ignore[no-untyped-def]
    """As `num_pieces`, for items of unlike size."""
    return min(count, threads[0] * _SMALL_PIECES_PER_THREAD)


@part
def claim(count, pieces, phase, threads):  # type: ignore[no-untyped-def]
    """Start and end of a piece of `count` items that nobody else does; an empty one when none is left."""
    piece = add_to(threads[1].ctypes.data + phase * PHASE_BYTES, 1)
    if piece >= pieces:
        return count, count
    units = threads[0] * _UNITS
    if pieces == threads[0] * _PIECES_PER_THREAD and count >= units:
        return _unit(piece, threads[0]) * count // units, _unit(piece + 1, threads[0]) * count // units
    return piece * count // pieces, (piece + 1) * count // pieces


@part
def _unit(piece, num_threads):  # type: ignore[no-untyped-def]
    """Where a piece of a long phase begins."""
    return piece + min(piece, num_threads) * (_FIRST_UNITS - 1)


@part
def finish(done, pieces, phase, threads):  # type: ignore[no-untyped-def]
    """Counts the pieces that this thread did; returns once all of a phase are done, and what they wrote is seen."""
    counter = threads[1].ctypes.data + phase * PHASE_BYTES + PHASE_BYTES // 2
    if done:
        add_to(counter, done)
    wait_for(counter, pieces)


@intrinsic  # type: ignore[untyped-decorator]
def add_to(_typing_context: Any, _address: Any, _value: Any) -> Any:
    """Adds to an int64 for all threads -> what it was."""
    return types.int64(types.int64, types.int64), _write_add


def _write_add(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
    return b.atomic_rmw("add", b.inttoptr(arguments[0], LONG.as_pointer()), arguments[1], "acq_rel")


@intrinsic  # type: ignore[untyped-decorator]
def wait_for(_typing_context: Any, _address: Any, _value: Any) -> Any:
    """Spins until the int64 at an address is `value`, and lets other processes run where that takes long."""
    return types.void(types.int64, types.int64), _write_wait


def _write_wait(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
    e = Emitter(b)
    counter = b.inttoptr(arguments[0], LONG.as_pointer())
    entry = b.block
    spin, check, pause, leave_core, done = (
        b.function.append_basic_block(name) for name in ("spin", "check", "pause", "leave_core", "done")
    )
    b.branch(spin)

    b.position_at_end(spin)
    spins = b.phi(LONG)
    spins.add_incoming(LONG(0), entry)
    b.cbranch(b.icmp_signed("==", b.load_atomic(counter, "acquire", 8), arguments[1]), done, check)

    b.position_at_end(check)
    more = b.add(spins, LONG(1))
    b.cbranch(b.icmp_signed(">", more, LONG(_SPINS)), leave_core, pause)

    b.position_at_end(pause)
    if IS_X86:
        e.call("llvm.x86.sse2.pause", ir.VoidType())
    spins.add_incoming(more, pause)
    b.branch(spin)

    b.position_at_end(leave_core)
    e.call("sched_yield", WORD)
    spins.add_incoming(more, leave_core)
    b.branch(spin)

    b.position_at_end(done)
    return context.get_dummy_value()
