"""The compiled kernels' own threads: asleep between calls, and sharing the work of one by claiming pieces of it.

A kernel is a row of phases, each cut into pieces. A thread claims pieces and does them until none is left, then counts
them as done; the next phase begins when all are. Nobody waits for a thread: when another process takes a core away, the
other threads do its share, and a busy machine slows a step in proportion and no more.

What a thread has begun when its core is taken from it would still hold up the others, for milliseconds. So a piece of a
long phase is computed in the thread's own memory first, and written where others read only by the one thread that says
first that it will (`take`, `begin_to_write`). A piece that stays unwritten for long another thread does again; the one
that comes back finds it written, and drops what it made, though what it read meanwhile may have changed.

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

_PATIENCE = 500
"""Looks at a counter before a thread does again what another has begun: about 15 µs, longer than most pieces take."""

_LINE = 64
"""Bytes of a cache line. A phase has two counters, claimed and done, each in one of its own; then a number a piece."""

_OPEN, _TAKEN = 0, 1
"""A piece that nobody writes yet, and one that somebody does or did."""

PIECE_BYTES = 64 * 1024
"""Of what a thread has computed of a piece and not yet written, about."""

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

    def run(self, kernel: Callable[..., None], num_phases: int, *arguments: Any, most_pieces: int = 0) -> None:
        """Calls kernel(thread, (num_threads, counters, bytes a phase), *arguments) in each thread; returns when all is done.

        A thread that comes late may still look at the counters after that, so each call has its own. most_pieces: of a
        phase whose pieces are taken (`most_taken`).
        """
        with self._lock:
            stride = 2 * _LINE + -(-8 * most_pieces // _LINE) * _LINE
            counters = np.zeros(num_phases * stride // 8, np.int64)
            shared = ((self.num_threads, counters, stride), *arguments)
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
    piece = add_to(threads[1].ctypes.data + phase * threads[2], 1)
    if piece >= pieces:
        return count, count
    return _cut(piece, pieces, count, threads)


@part
def _cut(piece, pieces, count, threads):  # type: ignore[no-untyped-def]
    """Start and end of a piece."""
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
    counter = threads[1].ctypes.data + phase * threads[2] + _LINE
    if done:
        add_to(counter, done)
    wait_for(counter, pieces)


@part
def num_taken(count, item_bytes, threads):  # type: ignore[no-untyped-def]
    """Into how many pieces `count` items are cut of which a thread keeps so many bytes each until it writes them."""
    usual = threads[0] * _PIECES_PER_THREAD
    if count * item_bytes * _FIRST_UNITS <= PIECE_BYTES * threads[0] * _UNITS:
        return min(count, usual)
    # more than usual, so that all are alike
    return max(usual + 1, -(-count * item_bytes // PIECE_BYTES))


@part
def num_small_taken(count, item_bytes, threads):  # type: ignore[no-untyped-def]
    """As `num_taken`, for items of unlike size."""
    return max(num_small_pieces(count, threads), -(-count * item_bytes // PIECE_BYTES))


def most_taken(num_bytes: int, num_threads: int) -> int:
    """Of `num_taken` and `num_small_taken`, at most, where all items have so many bytes."""
    return max(num_threads * _SMALL_PIECES_PER_THREAD, -(-num_bytes // PIECE_BYTES))


@part
def take(count, pieces, phase, threads):  # type: ignore[no-untyped-def]
    """(piece, start, end) of one that is not written; (pieces, count, count) once all are, and what they wrote is seen.

    One that nobody has begun, or, when none is left, one that another has not written for long.
    """
    place = threads[1].ctypes.data + phase * threads[2]
    piece = add_to(place, 1)
    if piece < pieces:
        start, end = _cut(piece, pieces, count, threads)
        return piece, start, end
    looks = 0
    while look_at(place + _LINE) != pieces:
        looks += 1
        if looks < _PATIENCE:
            continue
        for piece in range(pieces):
            if look_at(place + 2 * _LINE + 8 * piece) == _OPEN:
                start, end = _cut(piece, pieces, count, threads)
                return piece, start, end
        # the last ones are being written
        if looks > _SPINS:
            leave_core()
    return pieces, count, count


@part
def is_open(piece, phase, threads):  # type: ignore[no-untyped-def]
    """Whether nobody writes a piece: else there is no use in computing it."""
    return look_at(threads[1].ctypes.data + phase * threads[2] + 2 * _LINE + 8 * piece) == _OPEN


@part
def begin_to_write(piece, phase, threads):  # type: ignore[no-untyped-def]
    """Whether this thread is the one that writes a piece; it then must, and say so by `end_writing`."""
    return is_open(piece, phase, threads) and swap(
        threads[1].ctypes.data + phase * threads[2] + 2 * _LINE + 8 * piece, _OPEN, _TAKEN
    )


@part
def end_writing(phase, threads):  # type: ignore[no-untyped-def]
    """Counts a piece as written."""
    add_to(threads[1].ctypes.data + phase * threads[2] + _LINE, 1)


@part
def wait_for(address, value):  # type: ignore[no-untyped-def]
    """Spins until the int64 at an address is `value`, and lets other processes run where that takes long."""
    looks = 0
    while look_at(address) != value:
        looks += 1
        if looks > _SPINS:
            leave_core()


@intrinsic  # type: ignore[untyped-decorator]
def add_to(_typing_context: Any, _address: Any, _value: Any) -> Any:
    """Adds to an int64 for all threads -> what it was."""
    return types.int64(types.int64, types.int64), _write_add


def _write_add(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
    return b.atomic_rmw("add", b.inttoptr(arguments[0], LONG.as_pointer()), arguments[1], "acq_rel")


@intrinsic  # type: ignore[untyped-decorator]
def look_at(_typing_context: Any, _address: Any) -> Any:
    """The int64 at an address that other threads change, after a short pause."""
    return types.int64(types.int64), _write_look


def _write_look(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
    if IS_X86:
        Emitter(b).call("llvm.x86.sse2.pause", ir.VoidType())
    return b.load_atomic(b.inttoptr(arguments[0], LONG.as_pointer()), "acquire", 8)


@intrinsic  # type: ignore[untyped-decorator]
def swap(_typing_context: Any, _address: Any, _old: Any, _new: Any) -> Any:
    """Whether the int64 at an address was `old` and now is `new`."""
    return types.boolean(types.int64, types.int64, types.int64), _write_swap


def _write_swap(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
    place = b.inttoptr(arguments[0], LONG.as_pointer())
    return b.extract_value(b.cmpxchg(place, arguments[1], arguments[2], "acq_rel", "acquire"), 1)


@intrinsic  # type: ignore[untyped-decorator]
def leave_core(_typing_context: Any) -> Any:
    """Lets others run that wait for this core."""
    return types.void(), _write_leave


def _write_leave(context: Any, b: Any, _signature: Any, _arguments: Any) -> Any:
    Emitter(b).call("sched_yield", WORD)
    return context.get_dummy_value()
