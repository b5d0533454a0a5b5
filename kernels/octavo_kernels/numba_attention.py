"""Attention over the transposed paged cache (`numba_cache.py`): query rows that read the same keys share their loads.

A block of work is some consecutive rows of a sequence and the query heads of one kv head, MAX_ROWS pairs at most: a row
of a decode, several of a prefill. Softmax runs online, a chunk of up to 16 tiles of 16 keys at a time, in powers of 2: q
carries scale * log2(e). Of a chunk first all scores are computed, then all weights, then all sums of V, so that peaks and
sums are touched once a chunk. Chunks begin at fixed places of the sequence: what a pair computes, and in which order, is
the same in a block of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils
from numpy.typing import NDArray

from octavo_kernels.batches import AttentionBatch
from octavo_kernels.numba_cache import MAX_HEAD_DIM, cache_numbers, place_of
from octavo_kernels.numba_compile import kernel, part
from octavo_kernels.numba_linear import aligned
from octavo_kernels.numba_threads import THREAD, claim, finish, num_small_pieces
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

MAX_TILES = 16
"""Of 16 keys, in a chunk."""

LOWEST = -1e30
"""The score of a key that a pair may not see: below every other, and finite, so that the difference of two is a number."""
_LEAST_PEAK = -1e29
"""Far above `LOWEST`: the weights of a pair that sees no key are 0, too."""

# A thread's memory, in bytes. Rows of q, of the sums of V and of scores lie a cache line more than a power of 2 apart.
_STRIDE = 4 * MAX_HEAD_DIM + 64
_SCORE_STRIDE = 64 * MAX_TILES + 64
_Q = 0
_SUMS = _Q + MAX_ROWS * _STRIDE
_TOTALS = _SUMS + MAX_ROWS * _STRIDE
"""Sums of weights, 16 lanes a pair."""
_SCORES = _TOTALS + MAX_ROWS * 64
"""Of a chunk, 16 a tile; then the weights in their place."""
_PEAKS, _FIRSTS, _ENDS = (_SCORES + MAX_ROWS * _SCORE_STRIDE + 64 * i for i in range(3))
"""A lane a pair: the largest score so far, and the positions of the first key to attend to and after the last one."""
_TILES = _ENDS + 64
"""Four int64 a tile of the chunk: addresses of its K [head_dim, 16] and of its V rows [num_keys, width], the position of
its first key, and num_keys. One more after the last: what will be read next."""
_TILE_BYTES = 32
RUNNING_BYTES = _TILES + _TILE_BYTES * (MAX_TILES + 1)

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
    num_tokens, num_rows = int(starts[-1]), block_rows(num_heads // num_kv_heads)
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


def _attend_chunk(num_pairs: int, e: Emitter, memory: Any, *arguments: Any) -> None:
    """See `attend_1`."""
    b, base = e.builder, e.base(memory)
    num_tiles, last_first, first_end, head_dim, width = arguments
    with cgutils.for_range(b, num_tiles, intp=LONG) as loop:
        tile, next_tile = (e.sum(e.times(loop.index, _TILE_BYTES), LONG(_TILES + _TILE_BYTES * i)) for i in range(2))
        keys, next_keys = (e.base(e.load(base, place, LONG)) for place in (tile, next_tile))
        values = e.base(e.load(base, b.add(tile, LONG(8)), LONG))
        scores = _scores(e, base, keys, (next_keys, values), head_dim, num_pairs)
        position, num_keys = (e.load(base, b.add(tile, LONG(8 * field)), LONG) for field in (2, 3))
        end = b.add(position, LONG(LANES))
        is_whole = b.and_(
            b.icmp_signed("==", num_keys, LONG(LANES)),
            b.and_(b.icmp_signed(">=", position, last_first), b.icmp_signed("<=", end, first_end)),
        )
        with b.if_then(b.not_(is_whole)):
            unseen = [_without_unseen(e, base, pair, score, position, num_keys) for pair, score in enumerate(scores)]
            for pair, score in enumerate(unseen):
                e.store(score, base, e.sum(e.times(loop.index, 64), LONG(_SCORES + _SCORE_STRIDE * pair)))
        with b.if_then(is_whole):
            for pair, score in enumerate(scores):
                e.store(score, base, e.sum(e.times(loop.index, 64), LONG(_SCORES + _SCORE_STRIDE * pair)))
    shrinks = _weigh(e, base, num_tiles, num_pairs)
    slices = 2 if num_pairs > 4 else 4
    wide = b.and_(width, LONG(-slices * LANES))
    for first, last, count in ((LONG(0), wide, slices), (wide, width, 1)):
        with cgutils.for_range_slice(b, first, last, LONG(count * LANES), intp=LONG) as (column, _):
            _add_values(e, base, num_tiles, (column, width), count, shrinks)


def _scores(e: Emitter, base: Any, keys: Any, later: Sequence[Any], head_dim: Any, num_pairs: int) -> list[Any]:
    """Q . k of each pair with 16 keys; even and odd dimensions apart, because one chain of sums would wait for itself.

    later: as many bytes that will be read soon: blocks lie anywhere, so the processor cannot guess.
    """
    b = e.builder
    sums = [[cgutils.alloca_once_value(b, e.constant(FLOATS, 0.0)) for _ in range(2)] for _ in range(num_pairs)]
    with cgutils.for_range(b, b.lshr(head_dim, LONG(1)), intp=LONG) as loop:
        for place in later:
            e.prefetch(place, e.times(loop.index, 4 * LANES))
        for odd in range(2):
            dim = e.sum(e.times(loop.index, 2), LONG(odd))
            key = e.widen(e.load(keys, e.times(dim, 2 * LANES), HALVES, align=2))
            for i in range(num_pairs):
                value = e.load(base, e.sum(e.times(dim, 4), LONG(_Q + _STRIDE * i)), FLOAT)
                total = sums[i][odd]
                b.store(e.multiply_add(e.splat(value), key, b.load(total)), total)
    return [b.fadd(b.load(even), b.load(odd)) for even, odd in sums]


def _without_unseen(e: Emitter, base: Any, pair: int, score: Any, position: Any, num_keys: Any) -> Any:
    """The scores, `LOWEST` where there is no key or the pair may not see it."""
    b, lanes = e.builder, ir.Constant(WORDS, list(range(LANES)))
    is_key = b.icmp_signed("<", lanes, e.splat(b.trunc(num_keys, WORD)))
    positions = b.add(e.splat(b.trunc(position, WORD)), lanes)
    first, end = (e.splat(e.load(base, LONG(place + 4 * pair), WORD)) for place in (_FIRSTS, _ENDS))
    is_seen = b.and_(b.icmp_signed(">=", positions, first), b.icmp_signed("<", positions, end))
    return b.select(b.and_(is_key, is_seen), score, e.constant(FLOATS, LOWEST))


def _weigh(e: Emitter, base: Any, num_tiles: Any, num_pairs: int) -> list[Any]:
    """Scores become weights, 2^(score - peak), and are added to the totals -> by what each pair's earlier sums shrink."""
    b = e.builder
    largest = e.constant(FLOATS, LOWEST)
    for pair in range(num_pairs):
        highest = cgutils.alloca_once_value(b, e.constant(FLOATS, LOWEST))
        with cgutils.for_range(b, num_tiles, intp=LONG) as loop:
            place = e.sum(e.times(loop.index, 64), LONG(_SCORES + _SCORE_STRIDE * pair))
            b.store(e.larger(b.load(highest), e.load(base, place, FLOATS)), highest)
        one = e.call("llvm.vector.reduce.fmax.v16f32", FLOAT, b.load(highest))
        largest = b.insert_element(largest, one, WORD(pair))
    old = e.load(base, LONG(_PEAKS), FLOATS)
    peaks = e.larger(e.larger(old, largest), e.constant(FLOATS, _LEAST_PEAK))
    e.store(peaks, base, LONG(_PEAKS))
    factors = e.exp2(b.fsub(old, peaks), least=-127.0)
    shrinks = [e.splat(b.extract_element(factors, WORD(pair))) for pair in range(num_pairs)]
    for pair, shrink in enumerate(shrinks):
        place = LONG(_TOTALS + 64 * pair)
        peak = e.splat(b.extract_element(peaks, WORD(pair)))
        total = cgutils.alloca_once_value(b, b.fmul(e.load(base, place, FLOATS), shrink))
        with cgutils.for_range(b, num_tiles, intp=LONG) as loop:
            at = e.sum(e.times(loop.index, 64), LONG(_SCORES + _SCORE_STRIDE * pair))
            weight = e.exp2(b.fsub(e.load(base, at, FLOATS), peak), least=-127.0)
            e.store(weight, base, at)
            b.store(e.in_order(b.fadd(b.load(total), weight)), total)
        e.store(b.load(total), base, place)
    return shrinks


def _add_values(e: Emitter, base: Any, num_tiles: Any, span: tuple[Any, Any], count: int, shrinks: list[Any]) -> None:
    """Shrinks the sums of `count` vectors from a column on and adds weight * V of the chunk's keys.

    Keys past the end are not even read: their slots may hold another request's NaN.
    """
    b = e.builder
    column, width = span
    places = [
        [e.sum(e.times(column, 4), LONG(_SUMS + _STRIDE * pair + 64 * i)) for i in range(count)]
        for pair in range(len(shrinks))
    ]
    totals = [
        [cgutils.alloca_once_value(b, b.fmul(shrink, e.load(base, place, FLOATS))) for place in row]
        for shrink, row in zip(shrinks, places, strict=True)
    ]
    with cgutils.for_range(b, num_tiles, intp=LONG) as tiles:
        tile = e.sum(e.times(tiles.index, _TILE_BYTES), LONG(_TILES))
        values, num_keys = e.base(e.load(base, e.sum(tile, LONG(8)), LONG)), e.load(base, e.sum(tile, LONG(24)), LONG)
        with cgutils.for_range(b, num_keys, intp=LONG) as keys:
            row = e.times(e.sum(b.mul(keys.index, width), column), 2)
            vectors = [e.widen(e.load(values, e.sum(row, LONG(32 * i)), HALVES, align=2)) for i in range(count)]
            at = e.sum(e.times(tiles.index, 64), e.times(keys.index, 4))
            for pair, own in enumerate(totals):
                weight = e.splat(e.load(base, e.sum(at, LONG(_SCORES + _SCORE_STRIDE * pair)), FLOAT))
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

attend_1, attend_2, attend_3, attend_4, attend_6, attend_7, attend_8, attend_12 = (
    vector_function(6, partial(_attend_chunk, n)) for n in (1, 2, 3, 4, 6, 7, 8, 12)
)
"""(memory, num_tiles, last_first, first_end, head_dim, width): one chunk's share of the attention of 1 to 12 pairs.

memory: the address of a thread's, whose first num_tiles tiles are the chunk; last_first, first_end: the positions between
which every pair sees every key.
"""


def _write_tile(e: Emitter, entry: Any, *fields: Any) -> None:
    for i, field in enumerate(fields):
        e.store(field, e.base(entry), LONG(8 * i))


write_tile = vector_function(5, _write_tile)
"""(entry, key, value, position, num_keys): a tile of the chunk."""

finish_pair = vector_function(4, _finish_pair)
"""(memory, pair, out, head_dim): the pair's attention."""


@part
def _attend_pairs(count, memory, num_tiles, seen, head_dim, width):  # type: ignore[no-untyped-def]
    """The smallest function that takes `count` pairs; seen: (last_first, first_end)."""
    last_first, first_end = seen
    if count <= 1:
        attend_1(memory, num_tiles, last_first, first_end, head_dim, width)
    elif count == 2:
        attend_2(memory, num_tiles, last_first, first_end, head_dim, width)
    elif count == 3:
        attend_3(memory, num_tiles, last_first, first_end, head_dim, width)
    elif count == 4:
        attend_4(memory, num_tiles, last_first, first_end, head_dim, width)
    elif count <= 6:
        attend_6(memory, num_tiles, last_first, first_end, head_dim, width)
    elif count == 7:
        attend_7(memory, num_tiles, last_first, first_end, head_dim, width)
    elif count == 8:
        attend_8(memory, num_tiles, last_first, first_end, head_dim, width)
    else:
        attend_12(memory, num_tiles, last_first, first_end, head_dim, width)


@part
def _attend_keys(num_pairs, memory, start, longest, seen, table, places, shape, layer, kv_head):  # type: ignore[no-untyped-def]
    """All chunks of the keys from `start`, where a tile begins, to `longest`."""
    head_dim, width, block_size = shape[3], shape[4], shape[5]
    tiles_each = -(-block_size // 16)
    tile = start // block_size * tiles_each + start % block_size // 16
    key, value, left = _tile_of(start, table, places, shape, layer, kv_head)
    num_tiles = 0
    while start < longest:
        num_keys = min(min(16, left), longest - start)
        entry = memory + _TILES + num_tiles * _TILE_BYTES
        write_tile(entry, key, value, start, num_keys)
        num_tiles, tile, start = num_tiles + 1, tile + 1, start + num_keys
        key, value, left = _tile_of(min(start, longest - 1), table, places, shape, layer, kv_head)
        if tile % MAX_TILES == 0 or start >= longest:
            write_tile(entry + _TILE_BYTES, key, value, start, 0)
            _attend_pairs(num_pairs, memory, num_tiles, seen, head_dim, width)
            num_tiles = 0


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
            # fills up the function; nobody looks at what comes of it
            begin_pair(memory, pair, q[0], head_dim, width, 0, longest)
        start = _tile_start(max(0, length - window), shape[5])
        seen = (max(0, longest - window), length)
        _attend_keys(num_pairs, memory, start, longest, seen, table, places, shape, layer, kv_head)
        for pair in range(num_pairs):
            row = pair // count
            target = out[0] + (first_row + row) * out[1] + head + (pair - row * count) * head_dim * 4
            finish_pair(memory, pair, target, head_dim)
        done += count


@part
def _function_size(count):  # type: ignore[no-untyped-def]
    """Pairs of the function that `_attend_pairs` takes."""
    if count <= 4 or count == 7:
        return count
    if count <= 6:
        return 6
    return 8 if count == 8 else 12


@kernel
def attention_kernel(threads, q, plan, cache, layer, running, out):  # type: ignore[no-untyped-def]
    """All blocks and kv heads of a step."""
    places, shape = cache_numbers(cache)
    blocks, tables, window = plan
    source, target = (q.ctypes.data, q.shape[1] * 4), (out.ctypes.data, out.shape[1] * 4)
    memory = running.ctypes.data + threads[THREAD] * running.shape[1] * 4
    count = blocks.shape[0] * shape[1]
    pieces = num_small_pieces(count, threads)
    done, (start, end) = 0, claim(count, pieces, 0, threads)
    while start < end:
        for item in range(start, end):
            index = item // shape[1]
            table = tables.ctypes.data + blocks[index, 2] * tables.shape[1] * 4
            block = (blocks[index, 0], blocks[index, 1], blocks[index, 3], window, table)
            attend(source, block, places, shape, layer, item - index * shape[1], target, memory)
        done, (start, end) = done + end - start, claim(count, pieces, 0, threads)
    finish(done, count, 0, threads)


def running_buffers(num_threads: int, more: int = 0) -> NDArray[np.float32]:
    """What attention carries from tile to tile, a thread a row of `RUNNING_BYTES` and so many more."""
    return aligned((num_threads, (RUNNING_BYTES + more) // 4), np.float32)


def block_rows(group: int) -> int:
    """Rows of a block at most, of which `group` heads share a kv head."""
    return max(1, MAX_ROWS // group)


def scaled_queries(q: torch.Tensor, scale: float) -> NDArray[np.float32]:
    """q: [num_tokens, num_heads, head_dim] float32 -> [num_tokens, num_heads * head_dim], times scale * log2(e)."""
    rows: NDArray[np.float32] = (q * (scale * LOG2_E)).flatten(1).contiguous().numpy()
    return rows
