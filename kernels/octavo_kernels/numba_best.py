"""The largest of a row of logits while tiles of them are computed, each thread for itself, so that no row is ever whole."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from octavo_kernels.numba_compile import part
from octavo_kernels.numba_vector import FLOATS, LANES, WORD, WORDS, Emitter, vector_function

_VALUES, _IDS, _CHECKS = 0, LANES, 2 * LANES
"""What is kept of a row, 16 lanes each: the largest values, their ids as int32, and 0, or NaN after a value that is not
finite."""

BEST_BYTES = 3 * 4 * LANES


def best_of(num_threads: int, num_rows: int) -> NDArray[np.float32]:
    """-> [num_threads, num_rows, 48], of nothing yet. The caller makes it, for a thread may come late or never."""
    best = np.zeros((num_threads, num_rows, BEST_BYTES // 4), np.float32)
    best[..., :LANES] = -np.inf
    return best


def _keep(e: Emitter, values: Any, first: Any, count: Any, best: Any) -> None:
    b, base = e.builder, e.base(best)
    lanes = ir.Constant(WORDS, list(range(LANES)))
    value, largest = e.load(e.base(values), 0, FLOATS), e.load(base, 0, FLOATS)
    is_one = b.icmp_signed("<", lanes, e.splat(b.trunc(count, WORD)))
    ids, own_ids = b.add(e.splat(b.trunc(first, WORD)), lanes), e.load(base, 4 * _IDS, WORDS)
    # tiles come in any order
    is_first = b.and_(b.fcmp_ordered("==", value, largest), b.icmp_signed("<", ids, own_ids))
    is_larger = b.and_(is_one, b.or_(b.fcmp_ordered(">", value, largest), is_first))
    e.store(b.select(is_larger, value, largest), base, 0)
    e.store(b.select(is_larger, ids, own_ids), base, 4 * _IDS)
    checked = e.multiply_add(value, e.constant(FLOATS, 0.0), e.load(base, 4 * _CHECKS, FLOATS))
    e.store(checked, base, 4 * _CHECKS)


keep_best = vector_function(4, _keep)
"""(values, first, count, best): 16 float32 of the ids from `first` on, of which the first `count` are real."""


@part
def choose_best(best, tokens):  # type: ignore[no-untyped-def]
    """Writes each row's lowest id of the largest value, -1 where a value was not finite."""
    ids = best.view(np.int32)
    for row in range(tokens.shape[0]):
        largest, token, check = np.float32(-np.inf), np.int64(-1), np.float32(0.0)
        for thread in range(best.shape[0]):
            own, own_ids = best[thread, row], ids[thread, row]
            for lane in range(16):
                value, check = own[lane], check + own[_CHECKS + lane]
                if value > largest or (value == largest and own_ids[_IDS + lane] < token):
                    largest, token = value, own_ids[_IDS + lane]
        tokens[row] = token if check == 0.0 else -1
