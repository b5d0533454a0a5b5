"""Attention over the transposed paged cache (`numba_cache.py`): query rows that read the same keys share their loads.

A block of work is some consecutive rows of a sequence and the query heads of one kv head, MAX_ROWS pairs at most: a row
of a decode, several of a prefill. Softmax runs online, a tile of 16 keys at a time, in powers of 2: q carries
scale * log2(e). What a pair computes, and in which order, is the same in a block of any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils
from numpy.typing import NDArray

from octavo_kernels.backend import AttentionBatch
from octavo_kernels.numba_cache import MAX_HEAD_DIM, cache_numbers, place_of
from octavo_kernels.numba_compile import kernel, part
from octavo_kernels.numba_linear import aligned
from octavo_kernels.numba_threads import claim, finish, num_small_pieces
from octavo_kernels.numba_vector import (
    FLOAT,
    FLOATS,
    HALVES,
    LANES,
    LOG2_E,
    LONG,
    WORD,
    WORDS,
    Emitter,
    load_word,
    vector_function,
)

MAX_ROWS = 12
"""Pairs of a row and a head in a block: with two chains of sums each, the 32 vector registers hold them and the keys."""

LOWEST = -1e30
"""Below every score, and finite: the difference of two of them is a number."""

# A thread's memory, in bytes. Rows of q and of the sums of V lie a cache line more than a power of 2 apart.
_STRIDE = 4 * MAX_HEAD_DIM + 64
_Q = 0
_SUMS = _Q + MAX_ROWS * _STRIDE
_TOTALS = _SUMS + MAX_ROWS * _STRIDE
"""Sums of weights, 16 lanes a pair."""
_WEIGHTS = _TOTALS + MAX_ROWS * 64
_PEAKS, _SHRINKS, _FIRSTS, _ENDS = (_WEIGHTS + MAX_ROWS * 64 + 64 * i for i in range(4))
"""A lane a pair: the largest score so far, 2^(last peak - peak), and the positions of the first key to attend to and
after the last one."""
_SIZE = _ENDS + 64

NO_WINDOW = 2**31
"""Tokens that a row sees where nothing bounds it: more than any sequence has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPlan:
    """What the rows of a step read."""

    num_heads: int
    num_tokens: int
    window: int
    """Tokens that a row sees, its own among them."""
    blocks: NDArray[np.int64]
    """[num_blocks, 4]: first row, rows, sequence (a row of block_tables), keys that the first row attends to."""
    block_tables: NDArray[np.int32]


def plan_rows(batch: AttentionBatch, num_heads: int, num_kv_heads: int, window: int | None = None) -> RowPlan:
    starts = batch.query_start_loc.numpy()
    num_tokens, num_rows = int(starts[-1]), max(1, MAX_ROWS // (num_heads // num_kv_heads))
    # as many as there are where each row is one
    blocks = np.empty((num_tokens, 4), np.int64)
    count = _cut(starts, batch.seq_lens.numpy(), num_rows, blocks)
    return RowPlan(
        num_heads=num_heads,
        num_tokens=num_tokens,
        window=window or NO_WINDOW,
        blocks=blocks[:count],
        block_tables=np.ascontiguousarray(batch.block_tables.numpy()),
    )


@kernel
def _cut(starts, lengths, num_rows, blocks):  # type: ignore[no-untyped-def]
    """Writes `RowPlan.blocks` -> how many; the rows of a sequence, num_rows at a time."""
    count = 0
    for sequence in range(lengths.shape[0]):
        start, end = np.int64(starts[sequence]), np.int64(starts[sequence + 1])
        for row in range(start, end, num_rows):
            blocks[count, 0] = row
            blocks[count, 1] = min(num_rows, end - row)
            blocks[count, 2] = sequence
            blocks[count, 3] = lengths[sequence] - (end - row) + 1
            count += 1
    return count


def _begin_pair(e: Emitter, memory: Any, pair: Any, q: Any, *numbers: Any) -> None:
    b, base, source = e.builder, e.base(memory), e.base(q)
    head_dim, width, first, end = numbers
    row, lane = e.times(pair, _STRIDE), e.times(pair, 4)
    e.each(head_dim, lambda at, kind: e.store(e.load(source, at, kind), base, e.sum(row, at, LONG(_Q))))
    nothing = e.constant(FLOATS, 0.0)
    e.each(width, lambda at, kind: e.store(e.zero(kind), base, e.sum(row, at, LONG(_SUMS))))
    e.store(nothing, base, e.sum(e.times(pair, 64), LONG(_TOTALS)))
    e.store(FLOAT(LOWEST), base, e.sum(lane, LONG(_PEAKS)))
    e.store(b.trunc(first, WORD), base, e.sum(lane, LONG(_FIRSTS)))
    e.store(b.trunc(end, WORD), base, e.sum(lane, LONG(_ENDS)))


def _attend_tile(num_pairs: int, e: Emitter, memory: Any, *arguments: Any) -> None:
    """See `attend_1`."""
    b, base = e.builder, e.base(memory)
    keys, values, next_keys, next_values = (e.base(address) for address in arguments[:4])
    start, num_keys, head_dim, width = arguments[4:]
    scores = _scores(e, base, keys, next_keys, head_dim, num_pairs)
    lanes = ir.Constant(WORDS, list(range(LANES)))
    is_key = b.icmp_signed("<", lanes, e.splat(b.trunc(num_keys, WORD)))
    positions = b.select(is_key, b.add(e.splat(b.trunc(start, WORD)), lanes), e.constant(WORDS, 2**31 - 1))
    present = [_is_seen(e, base, pair, positions) for pair in range(num_pairs)]
    scores = [b.select(p, score, e.constant(FLOATS, LOWEST)) for p, score in zip(present, scores, strict=True)]
    old = e.load(base, _PEAKS, FLOATS)
    largest = e.constant(FLOATS, LOWEST)
    for i, score in enumerate(scores):
        largest = b.insert_element(largest, e.call("llvm.vector.reduce.fmax.v16f32", FLOAT, score), WORD(i))
    peaks = e.larger(old, largest)
    e.store(peaks, base, _PEAKS)
    e.store(e.exp2(b.fsub(old, peaks)), base, _SHRINKS)
    for i, (p, score) in enumerate(zip(present, scores, strict=True)):
        weight = e.exp2(b.fsub(score, e.splat(e.load(base, _PEAKS + 4 * i, FLOAT))))
        # exp2 has no zero, and a key that a pair may not see must leave its sums as they are
        weight = b.select(p, weight, e.constant(FLOATS, 0.0))
        shrink = e.splat(e.load(base, _SHRINKS + 4 * i, FLOAT))
        total = e.load(base, _TOTALS + 64 * i, FLOATS)
        e.store(e.multiply_add(total, shrink, weight), base, _TOTALS + 64 * i)
        e.store(weight, base, _WEIGHTS + 64 * i)
    slices = 2 if num_pairs > 4 else 4
    wide = b.and_(width, LONG(-slices * LANES))
    for first, last, count in ((LONG(0), wide, slices), (wide, width, 1)):
        with cgutils.for_range_slice(b, first, last, LONG(count * LANES), intp=LONG) as (column, _):
            _add_values(e, base, (values, next_values), (column, width, num_keys), count, num_pairs)


def _is_seen(e: Emitter, base: Any, pair: int, positions: Any) -> Any:
    b = e.builder
    first, end = (e.splat(e.load(base, place + 4 * pair, WORD)) for place in (_FIRSTS, _ENDS))
    return b.and_(b.icmp_signed(">=", positions, first), b.icmp_signed("<", positions, end))


def _scores(e: Emitter, base: Any, keys: Any, next_keys: Any, head_dim: Any, num_pairs: int) -> list[Any]:
    """Q . k of each pair with 16 keys; even and odd dimensions apart, because one chain of sums would wait for itself."""
    b = e.builder
    sums = [[cgutils.alloca_once_value(b, e.constant(FLOATS, 0.0)) for _ in range(2)] for _ in range(num_pairs)]
    with cgutils.for_range(b, b.lshr(head_dim, LONG(1)), intp=LONG) as loop:
        e.prefetch(next_keys, e.times(loop.index, 4 * LANES))
        for odd in range(2):
            dim = e.sum(e.times(loop.index, 2), LONG(odd))
            key = e.widen(e.load(keys, e.times(dim, 2 * LANES), HALVES, align=2))
            for i in range(num_pairs):
                value = e.load(base, e.sum(e.times(dim, 4), LONG(_Q + _STRIDE * i)), FLOAT)
                total = sums[i][odd]
                b.store(e.multiply_add(e.splat(value), key, b.load(total)), total)
    return [b.fadd(b.load(even), b.load(odd)) for even, odd in sums]


def _add_values(
    e: Emitter, base: Any, tiles: tuple[Any, Any], span: tuple[Any, Any, Any], count: int, num_pairs: int
) -> None:
    """Shrinks the sums of `count` vectors from a column on and adds weight * V of the keys that exist.

    Keys past the end are not even read: their slots may hold another request's NaN.
    """
    b = e.builder
    values, next_values = tiles
    column, width, num_keys = span
    places = [
        [e.sum(e.times(column, 4), LONG(_SUMS + _STRIDE * pair + 64 * i)) for i in range(count)]
        for pair in range(num_pairs)
    ]
    totals = []
    for pair, row in enumerate(places):
        shrink = e.splat(e.load(base, _SHRINKS + 4 * pair, FLOAT))
        totals.append([cgutils.alloca_once_value(b, b.fmul(shrink, e.load(base, place, FLOATS))) for place in row])
    with cgutils.for_range(b, num_keys, intp=LONG) as loop:
        row = e.times(e.sum(b.mul(loop.index, width), column), 2)
        for i in range(0, count, 2):
            e.prefetch(next_values, e.sum(row, LONG(32 * i)))
        vectors = [e.widen(e.load(values, e.sum(row, LONG(32 * i)), HALVES, align=2)) for i in range(count)]
        for pair, own in enumerate(totals):
            weight = e.splat(e.load(base, e.sum(e.times(loop.index, 4), LONG(_WEIGHTS + 64 * pair)), FLOAT))
            for vector, total in zip(vectors, own, strict=True):
                b.store(e.multiply_add(weight, vector, b.load(total)), total)
    for own, row in zip(totals, places, strict=True):
        for total, place in zip(own, row, strict=True):
            e.store(b.load(total), base, place)


def _finish_pair(e: Emitter, memory: Any, pair: Any, out: Any, head_dim: Any) -> None:
    b, base, target = e.builder, e.base(memory), e.base(out)
    total = e.lane_sum(e.load(base, e.sum(e.times(pair, 64), LONG(_TOTALS)), FLOATS))
    inverse = b.fdiv(FLOAT(1.0), total)
    row = e.sum(e.times(pair, _STRIDE), LONG(_SUMS))
    e.each(
        head_dim,
        lambda at, kind: e.store(b.fmul(e.load(base, e.sum(row, at), kind), e.like(inverse, kind)), target, at),
    )


begin_pair = vector_function(7, _begin_pair)
"""(memory, pair, q, head_dim, width, first, end): a pair's query and empty sums; it attends to the keys of positions
first … end - 1."""

attend_1, attend_2, attend_3, attend_4, attend_6, attend_8, attend_12 = (
    vector_function(9, partial(_attend_tile, n)) for n in (1, 2, 3, 4, 6, 8, 12)
)
"""(memory, keys, values, next_keys, next_values, start, num_keys, head_dim, width): one tile's share of the attention
of 1 to 12 pairs.

Addresses of a thread's memory, of the K tile [head_dim, 16] whose first key stands at position `start`, of its V rows
[num_keys, width], and of the tile that will be read after it: blocks lie anywhere, so the processor cannot guess.
"""

finish_pair = vector_function(4, _finish_pair)
"""(memory, pair, out, head_dim): the pair's attention."""


@part
def _attend_pairs(count, memory, key, value, ahead, span):  # type: ignore[no-untyped-def]
    """The smallest function that takes `count` pairs; span: (start, num_keys, head_dim, width)."""
    start, num_keys, head_dim, width = span
    if count <= 1:
        attend_1(memory, key, value, ahead[0], ahead[1], start, num_keys, head_dim, width)
    elif count == 2:
        attend_2(memory, key, value, ahead[0], ahead[1], start, num_keys, head_dim, width)
    elif count == 3:
        attend_3(memory, key, value, ahead[0], ahead[1], start, num_keys, head_dim, width)
    elif count == 4:
        attend_4(memory, key, value, ahead[0], ahead[1], start, num_keys, head_dim, width)
    elif count <= 6:
        attend_6(memory, key, value, ahead[0], ahead[1], start, num_keys, head_dim, width)
    elif count <= 8:
        attend_8(memory, key, value, ahead[0], ahead[1], start, num_keys, head_dim, width)
    else:
        attend_12(memory, key, value, ahead[0], ahead[1], start, num_keys, head_dim, width)


@part
def _tile_of(position, table, places, shape, layer, kv_head):  # type: ignore[no-untyped-def]
    """Addresses of the K tile and the V rows from a sequence's `position` on, and the slots left in their block."""
    index = position // shape[5]
    offset = position - index * shape[5]
    key, value = place_of(layer, load_word(table + index * 4), offset, kv_head, places, shape)
    return key, value, shape[5] - offset


@part
def _tile_start(position, block_size):  # type: ignore[no-untyped-def]
    """The first position of the tile that holds one; what lies before it may have been freed, and is not read."""
    start = position // block_size * block_size
    return start + (position - start) // 16 * 16


@part
def attend(q, block, places, shape, layer, kv_head, out, memory):  # type: ignore[no-untyped-def]
    """Attention of one block and kv head.

    q: (address, row bytes) of [num_tokens, …] float32 with the heads first, scaled by scale * log2(e); block: (first
    row, rows, position after the first row, tokens that a row sees, address of the block table); places, shape: `cache_numbers`; out:
    (address, row bytes) of [num_tokens, num_heads * head_dim], written; memory: the address of this thread's.
    """
    head_dim, width, group = shape[3], shape[4], shape[6] // shape[1]
    first_row, num_rows, length, window, table = block
    longest = length + num_rows - 1
    done = 0
    while done < group:
        count = min(MAX_ROWS, group - done)
        head = (kv_head * group + done) * head_dim * 4
        num_pairs = num_rows * count
        for pair in range(num_pairs):
            row = pair // count
            source = q[0] + (first_row + row) * q[1] + head + (pair - row * count) * head_dim * 4
            begin_pair(memory, pair, source, head_dim, width, max(0, length + row - window), length + row)
        for pair in range(num_pairs, _function_size(num_pairs)):
            # fills up the function and attends to nothing
            begin_pair(memory, pair, q[0], head_dim, width, 0, 0)
        start = _tile_start(max(0, length - window), shape[5])
        key, value, left = _tile_of(start, table, places, shape, layer, kv_head)
        while start < longest:
            num_keys = min(min(16, left), longest - start)
            following = min(start + num_keys, longest - 1)
            next_key, next_value, left = _tile_of(following, table, places, shape, layer, kv_head)
            span = (start, num_keys, head_dim, width)
            _attend_pairs(num_pairs, memory, key, value, (next_key, next_value), span)
            start, key, value = start + num_keys, next_key, next_value
        for pair in range(num_pairs):
            row = pair // count
            target = out[0] + (first_row + row) * out[1] + head + (pair - row * count) * head_dim * 4
            finish_pair(memory, pair, target, head_dim)
        done += count


@part
def _function_size(count):  # type: ignore[no-untyped-def]
    """Pairs of the function that `_attend_pairs` takes."""
    if count <= 4:
        return count
    if count <= 6:
        return 6
    return 8 if count <= 8 else 12


@kernel
def attention_kernel(thread, threads, q, plan, cache, layer, running, out):  # type: ignore[no-untyped-def]
    """All blocks and kv heads of a step."""
    places, shape = cache_numbers(cache)
    blocks, tables, window = plan
    source, target = (q.ctypes.data, q.shape[1] * 4), (out.ctypes.data, out.shape[1] * 4)
    memory = running.ctypes.data + thread * running.shape[1] * 4
    count = blocks.shape[0] * shape[1]
    pieces = num_small_pieces(count, threads)
    done, (start, end) = 0, claim(count, pieces, 0, threads)
    while start < end:
        for item in range(start, end):
            index = item // shape[1]
            table = tables.ctypes.data + blocks[index, 2] * tables.shape[1] * 4
            block = (blocks[index, 0], blocks[index, 1], blocks[index, 3], window, table)
            attend(source, block, places, shape, layer, item - index * shape[1], target, memory)
        done, (start, end) = done + 1, claim(count, pieces, 0, threads)
    finish(done, pieces, 0, threads)


def running_buffers(num_threads: int, at_least: int = 0) -> NDArray[np.float32]:
    """What attention carries from tile to tile, a thread a row of so many bytes or more."""
    return aligned((num_threads, max(_SIZE, at_least) // 4), np.float32)


def scaled_queries(q: torch.Tensor, scale: float) -> NDArray[np.float32]:
    """q: [num_tokens, num_heads, head_dim] float32 -> [num_tokens, num_heads * head_dim], times scale * log2(e)."""
    rows: NDArray[np.float32] = (q * (scale * LOG2_E)).flatten(1).contiguous().numpy()
    return rows
