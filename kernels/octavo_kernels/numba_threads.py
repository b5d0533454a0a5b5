"""The compiled kernels' own threads: asleep between calls, and sharing the work of one by claiming pieces of it.

A kernel is a row of phases, each a number of items. Every thread has a share of them, cut into pieces: it claims those of
its own share in turn, so that it knows what it will read next, then those that others have left; the next phase begins when
all items are done. Nobody waits for a thread: when another process takes a core away, the other threads do its share, and a
busy machine slows a step in proportion and no more.

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

_PIECES = 4
"""Of a share. Claiming one costs a tenth of a microsecond, which is much beside one token's product."""

_FIRST_UNITS = 5
_UNITS = _FIRST_UNITS + _PIECES - 1
"""Of a long share the first piece is 5 / 8, the others 1 / 8 each: few claims, a short end."""

_SMALL_PIECES = 16
"""Of a share, where some items take far longer than others."""

_PATIENCE = 500
"""Looks at a counter before a thread does again what another has begun: about 15 µs, longer than most pieces take."""

_LINE = 64
"""Bytes of a cache line. A phase has a counter of claimed pieces a share and one of items done, each in a line of its own;
then a number a piece."""

_OPEN, _TAKEN = 0, 1
"""A piece that nobody writes yet, and one that somebody does or did."""

PIECE_BYTES = 64 * 1024
"""Of what a thread has computed of a piece and not yet written, about."""

NUM_THREADS, COUNTERS, PHASE_BYTES, THREAD = range(4)
"""Of what a kernel is told of its threads: how many, the array of counters, the bytes of a phase's, which one this is."""

_Job = tuple[Callable[..., None], tuple[Any, ...]] | None


class ThreadPool:
    """Runs a kernel in all threads at once, the caller's among them. One call at a time."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._lock = threading.Lock()
        self._jobs: list[SimpleQueue[_Job]] = [SimpleQueue() for _ in range(num_threads - 1)]
        for index, jobs in enumerate(self._jobs, start=1):
            # The thread holds its queue, not the pool, so that a forgotten pool ends its threads.
            threading.Thread(target=_work, args=(jobs,), name=f"kernels-{index}", daemon=True).start()
        weakref.finalize(self, _end, self._jobs)

    def run(self, kernel: Callable[..., None], num_phases: int, *arguments: Any, most_pieces: int = 0) -> None:
        """Calls kernel((num_threads, counters, bytes a phase, index of the thread), *arguments) in each thread.

        Returns when all is done. A thread that comes late may still look at the counters after that, so each call has its
        own. most_pieces: of a phase whose pieces are taken (`most_taken`).
        """
        with self._lock:
            stride = (self.num_threads + 1) * _LINE + -(-8 * most_pieces // _LINE) * _LINE
            counters = np.zeros(num_phases * stride // 8, np.int64)
            for index, jobs in enumerate(self._jobs, start=1):
                jobs.put((kernel, ((self.num_threads, counters, stride, index), *arguments)))
            kernel((self.num_threads, counters, stride, 0), *arguments)


def _end(queues: list[SimpleQueue[_Job]]) -> None:
    for jobs in queues:
        jobs.put(None)


def _work(jobs: SimpleQueue[_Job]) -> None:
    while (job := jobs.get()) is not None:
        kernel, arguments = job
        try:
            kernel(*arguments)
        except Exception:
            # It failed before its first piece, for compiled code raises nothing; the caller does the work alone.
            logger.exception("a thread could not start a kernel")
        del job, kernel, arguments


@part
def num_pieces(count, threads):  # type: ignore[no-untyped-def]
    """Into how many pieces each thread's share of `count` items is cut; where it has fewer items, some are empty."""
    return min(_largest_share(count, threads), _PIECES)


@part
def num_small_pieces(count, threads):  # type: ignore[no-untyped-def]
    """As `num_pieces`, for items of unlike size."""
    return min(_largest_share(count, threads), _SMALL_PIECES)


@part
def _largest_share(count, threads):  # type: ignore[no-untyped-def]
    return -(-count // threads[NUM_THREADS])


@part
def share_start(count, threads):  # type: ignore[no-untyped-def]
    """The first of `count` items that this thread does."""
    return _start_of(threads[THREAD], count, threads)


@part
def share_end(count, threads):  # type: ignore[no-untyped-def]
    """The item after the last one of this thread's share."""
    return _start_of(threads[THREAD] + 1, count, threads)


@part
def _start_of(share, count, threads):  # type: ignore[no-untyped-def]
    return share * count // threads[NUM_THREADS]


@part
def claim(count, pieces, phase, threads):  # type: ignore[no-untyped-def]
    """Start and end of a piece of `count` items that nobody else does; an empty one when none is left."""
    _, start, end = _next_items(count, pieces, phase, threads)
    return start, end


@part
def _next_items(count, pieces, phase, threads):  # type: ignore[no-untyped-def]
    """(piece, start, end) of one that nobody has claimed and that has items; (-1, count, count): there is none."""
    piece = _next_piece(pieces, phase, threads)
    while piece >= 0:
        start, end = _cut(piece, pieces, count, threads)
        if start < end:
            return piece, start, end
        piece = _next_piece(pieces, phase, threads)
    return -1, count, count


@part
def _next_piece(pieces, phase, threads):  # type: ignore[no-untyped-def]
    """One that nobody has claimed, of this thread's own share while there is one; -1: there is none.

    But a neighbour that has not come by the end of the own share's first piece is helped first.
    """
    num_threads, own = threads[NUM_THREADS], threads[THREAD]
    neighbour = (own + 1) % num_threads
    helps = glance_at(_claimed_at(own, phase, threads)) > 0 and glance_at(_claimed_at(neighbour, phase, threads)) == 0
    first = neighbour if helps else own
    for turn in range(num_threads):
        share = (first + turn) % num_threads
        counter = _claimed_at(share, phase, threads)
        if glance_at(counter) < pieces:
            claimed = add_to(counter, 1)
            if claimed < pieces:
                return share * pieces + claimed
    return -1


@part
def _claimed_at(share, phase, threads):  # type: ignore[no-untyped-def]
    """The address of the number of a share's claimed pieces."""
    return threads[COUNTERS].ctypes.data + phase * threads[PHASE_BYTES] + share * _LINE


@part
def _cut(piece, pieces, count, threads):  # type: ignore[no-untyped-def]
    """Start and end of a piece; those of a long share are unlike where it has the usual number of them.

    Of a share with fewer items than pieces the last ones are empty.
    """
    share = piece // pieces
    part_of_share, first = piece - share * pieces, _start_of(share, count, threads)
    length = _start_of(share + 1, count, threads) - first
    if pieces == _PIECES and length >= _UNITS:
        return first + _unit(part_of_share) * length // _UNITS, first + _unit(part_of_share + 1) * length // _UNITS
    return first - (-part_of_share * length // pieces), first - (-(part_of_share + 1) * length // pieces)


@part
def _unit(piece):  # type: ignore[no-untyped-def]
    """Where a piece of a long share begins."""
    return piece + min(piece, 1) * (_FIRST_UNITS - 1)


@part
def finish(done, count, phase, threads):  # type: ignore[no-untyped-def]
    """Counts the items that this thread did; returns once all of a phase are done, and what they wrote is seen."""
    counter = _done_at(phase, threads)
    if done:
        add_to(counter, done)
    wait_for(counter, count)


@part
def _done_at(phase, threads):  # type: ignore[no-untyped-def]
    """The address of the number of items done."""
    return threads[COUNTERS].ctypes.data + phase * threads[PHASE_BYTES] + threads[NUM_THREADS] * _LINE


@part
def _state_at(piece, phase, threads):  # type: ignore[no-untyped-def]
    """The address of a piece's number."""
    return _done_at(phase, threads) + _LINE + 8 * piece


@part
def num_taken(count, item_bytes, threads):  # type: ignore[no-untyped-def]
    """As `num_pieces`, where a thread keeps so many bytes of each item until it writes them."""
    share = _largest_share(count, threads)
    if share * item_bytes * _FIRST_UNITS <= PIECE_BYTES * _UNITS:
        return min(share, _PIECES)
    # more than usual, so that all are alike
    return max(_PIECES + 1, min(share, -(-share * item_bytes // PIECE_BYTES)))


@part
def num_small_taken(count, item_bytes, threads):  # type: ignore[no-untyped-def]
    """As `num_taken`, for items of unlike size."""
    share = _largest_share(count, threads)
    return max(num_small_pieces(count, threads), min(share, -(-share * item_bytes // PIECE_BYTES)))


def most_taken(num_bytes: int, num_threads: int) -> int:
    """Pieces of all shares by `num_taken` and `num_small_taken`, at most, where all items have so many bytes."""
    return num_threads * max(_SMALL_PIECES, -(-num_bytes // (num_threads * PIECE_BYTES)) + 1)


@part
def take(count, pieces, phase, threads):  # type: ignore[no-untyped-def]
    """(piece, start, end) of one that is not written; (-1, count, count) once all are, and what they wrote is seen.

    One that nobody has begun, or, when none is left, one that another has not written for long.
    """
    piece, start, end = _next_items(count, pieces, phase, threads)
    if start < end:
        return piece, start, end
    looks = 0
    while look_at(_done_at(phase, threads)) != count:
        looks += 1
        if looks < _PATIENCE:
            continue
        for piece in range(threads[NUM_THREADS] * pieces):
            if is_open(piece, phase, threads):
                start, end = _cut(piece, pieces, count, threads)
                if start < end:
                    return piece, start, end
        # the last ones are being written
        if looks > _SPINS:
            leave_core()
    return -1, count, count


@part
def is_open(piece, phase, threads):  # type: ignore[no-untyped-def]
    """Whether nobody writes a piece: else there is no use in computing it."""
    return glance_at(_state_at(piece, phase, threads)) == _OPEN


@part
def begin_to_write(piece, phase, threads):  # type: ignore[no-untyped-def]
    """Whether this thread is the one that writes a piece; it then must, and say so by `end_writing`."""
    return is_open(piece, phase, threads) and swap(_state_at(piece, phase, threads), _OPEN, _TAKEN)


@part
def end_writing(num_items, phase, threads):  # type: ignore[no-untyped-def]
    """Counts a piece's items as written."""
    add_to(_done_at(phase, threads), num_items)


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
    """As `glance_at`, after a pause that leaves a core's other thread its turn: for those who wait."""
    return types.int64(types.int64), _write_look


@intrinsic  # type: ignore[untyped-decorator]
def glance_at(_typing_context: Any, _address: Any) -> Any:
    """The int64 at an address that other threads change."""
    return types.int64(types.int64), _write_glance


def _write_look(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
    if IS_X86:
        Emitter(b).call("llvm.x86.sse2.pause", ir.VoidType())
    return _write_glance(context, b, signature, arguments)


def _write_glance(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
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
