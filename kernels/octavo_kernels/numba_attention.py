"""Attention over a paged cache whose K lies transposed, so that 16 keys are one vector and no sum crosses lanes.

K: [layers, blocks, kv_heads, tiles, head_dim, 16], a tile being 16 slots of a block; a block size that is no multiple
of 16 leaves the end of its last tile unused. V: [layers, blocks, kv_heads, block_size, value_width], head_dim padded
to a multiple of 16. Softmax runs online, a tile at a time, in powers of 2: q carries scale * log2(e).
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

from octavo_kernels.backend import PAD_SLOT, AttentionBatch, KVCacheSpec
from octavo_kernels.numba_compile import kernel, part
from octavo_kernels.numba_linear import aligned
from octavo_kernels.numba_threads import claim, finish, num_pieces, wait
from octavo_kernels.numba_vector import FLOAT, FLOATS, LANES, LOG2_E, LONG, WORD, WORDS, Emitter, vector_function

MAX_HEADS = 4
"""Query heads that share the loads of one K tile; more would leave no registers for V."""

LOWEST = -1e30
"""Below every score, and finite: the difference of two of them is a number."""

_SLICES = 4
"""Vectors of V that one pass over a tile's keys adds up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransposedCache:
    """K and V of all layers, float32."""

    spec: KVCacheSpec
    keys: NDArray[np.float32]
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPlan:
    """What each row of a step reads."""

    num_heads: int
    row_sequences: NDArray[np.int64]
    """[num_tokens]: the sequence, a row of block_tables."""
    row_lengths: NDArray[np.int64]
    """[num_tokens]: keys that the row attends to."""
    block_tables: NDArray[np.int32]


def allocate_cache(spec: KVCacheSpec) -> TransposedCache:
    """Zeros that take memory only once they are written."""
    heads = (spec.num_layers, spec.num_blocks, spec.num_kv_heads)
    num_tiles, width = -(-spec.block_size // LANES), -(-spec.head_dim // LANES) * LANES
    return TransposedCache(
        spec=spec,
        keys=np.zeros((*heads, num_tiles, spec.head_dim, LANES), np.float32),
        values=np.zeros((*heads, spec.block_size, width), np.float32),
    )


def plan_rows(batch: AttentionBatch, num_heads: int) -> RowPlan:
    starts = batch.query_start_loc.numpy()
    query_lens = np.diff(starts).astype(np.int64)
    sequences = np.repeat(np.arange(len(query_lens)), query_lens)
    first_lengths = batch.seq_lens.numpy().astype(np.int64) - query_lens + 1
    lengths = first_lengths[sequences] + np.arange(len(sequences)) - starts[sequences]
    return RowPlan(
        num_heads=num_heads,
        row_sequences=sequences,
        row_lengths=lengths,
        block_tables=np.ascontiguousarray(batch.block_tables.numpy()),
    )


def _attend_tile(num_heads: int, e: Emitter, *arguments: Any) -> None:
    """See `attend_1`."""
    b = e.builder
    q, keys, values, state, sums = (e.base(address) for address in arguments[:5])
    num_keys, head_dim, width = arguments[5:]
    heads = range(num_heads)
    scores = _scores(e, q, keys, head_dim, num_heads)
    lanes = ir.Constant(WORDS, list(range(LANES)))
    present = b.icmp_signed("<", lanes, e.splat(b.trunc(num_keys, WORD)))
    shrinks, weights = [], cgutils.alloca_once(b, FLOATS, size=num_heads)
    for head in heads:
        score = b.select(present, scores[head], e.constant(FLOATS, LOWEST))
        old_peak, old_sum = e.load(state, 8 * head, FLOAT), e.load(state, 8 * head + 4, FLOAT)
        tile_peak = e.call("llvm.vector.reduce.fmax.v16f32", FLOAT, score)
        peak = e.call("llvm.maxnum.f32", FLOAT, old_peak, tile_peak)
        weight = e.exp2(b.fsub(score, e.splat(peak)))
        shrink = e.exp2(e.splat(b.fsub(old_peak, peak)))
        total = b.fadd(b.fmul(old_sum, b.extract_element(shrink, WORD(0))), e.lane_sum(weight))
        e.store(peak, state, 8 * head)
        e.store(total, state, 8 * head + 4)
        b.store(weight, b.gep(weights, [WORD(head)]))
        shrinks.append(shrink)
    base = b.bitcast(weights, e.base(arguments[0]).type)
    wide = b.and_(width, LONG(-_SLICES * LANES))
    for start, end, count in ((LONG(0), wide, _SLICES), (wide, width, 1)):
        with cgutils.for_range_slice(b, start, end, LONG(count * LANES), intp=LONG) as (column, _):
            _add_values(e, base, values, sums, shrinks, (column, width, num_keys, count))


def _scores(e: Emitter, q: Any, keys: Any, head_dim: Any, num_heads: int) -> list[Any]:
    """Q . k of each head with 16 keys; even and odd dimensions apart, because one chain of sums would wait for itself."""
    b = e.builder
    sums = [[cgutils.alloca_once_value(b, e.constant(FLOATS, 0.0)) for _ in range(2)] for _ in range(num_heads)]
    with cgutils.for_range(b, b.lshr(head_dim, LONG(1)), intp=LONG) as loop:
        for odd in range(2):
            dim = e.sum(e.times(loop.index, 2), LONG(odd))
            key = e.load(keys, e.times(dim, 4 * LANES), FLOATS)
            for head in range(num_heads):
                value = e.load(q, e.times(e.sum(dim, e.times(head_dim, head)), 4), FLOAT)
                total = sums[head][odd]
                b.store(e.multiply_add(e.splat(value), key, b.load(total)), total)
    return [b.fadd(b.load(even), b.load(odd)) for even, odd in sums]


def _add_values(e: Emitter, weights: Any, values: Any, sums: Any, shrinks: list[Any], span: tuple[Any, ...]) -> None:
    """Shrinks the sums of `count` vectors from `column` on and adds weight * V of the keys that exist.

    Keys past the end are not even read: their slots may hold another request's NaN.
    """
    b = e.builder
    column, width, num_keys, count = span
    offsets = [e.times(e.sum(column, LONG(LANES * i)), 4) for i in range(count)]
    places = [[e.sum(e.times(e.times(width, head), 4), offset) for offset in offsets] for head in range(len(shrinks))]
    totals = [
        [cgutils.alloca_once_value(b, b.fmul(shrink, e.load(sums, place, FLOATS))) for place in row]
        for shrink, row in zip(shrinks, places, strict=True)
    ]
    with cgutils.for_range(b, num_keys, intp=LONG) as loop:
        row = e.times(b.mul(loop.index, width), 4)
        vectors = [e.load(values, b.add(row, offset), FLOATS) for offset in offsets]
        for head, places_of_head in enumerate(totals):
            weight = e.splat(e.load(weights, e.sum(e.times(loop.index, 4), LONG(4 * LANES * head)), FLOAT))
            for vector, total in zip(vectors, places_of_head, strict=True):
                b.store(e.multiply_add(weight, vector, b.load(total)), total)
    for row_totals, row_places in zip(totals, places, strict=True):
        for total, place in zip(row_totals, row_places, strict=True):
            e.store(b.load(total), sums, place)


attend_1, attend_2, attend_3, attend_4 = (vector_function(8, partial(_attend_tile, n)) for n in (1, 2, 3, 4))
"""(q, keys, values, state, sums, num_keys, head_dim, width): one tile's share of the attention of 1 to 4 heads.

Addresses of q [heads, head_dim], the K tile [head_dim, 16], its V rows [num_keys, width], and what runs on between
tiles: state [heads, 2] (peak, sum of weights) and sums [heads, width].
"""


@part
def attend(q, plan, cache, layer, item, out, running):  # type: ignore[no-untyped-def]
    """Attention of the query heads of one (row, kv head), item = row * kv_heads + kv head.

    q: [num_tokens, width] float32 with the heads first, scaled by scale * log2(e); plan: (row_sequences, row_lengths,
    block_tables); cache: (keys, values, block_size, num_heads); out: [num_tokens, num_heads * head_dim], written;
    running: this thread's [MAX_HEADS * (2 + width)] float32.
    """
    row_sequences, row_lengths, block_tables = plan
    keys, values, block_size, num_heads = cache
    num_kv_heads, head_dim, width = keys.shape[2], keys.shape[4], values.shape[4]
    row, kv_head = item // num_kv_heads, item % num_kv_heads
    group = num_heads // num_kv_heads
    length, table = row_lengths[row], block_tables[row_sequences[row]]
    state = running[: MAX_HEADS * 2].reshape((MAX_HEADS, 2))
    sums = running[MAX_HEADS * 2 :].reshape((MAX_HEADS, width))
    done = 0
    while done < group:
        count = min(MAX_HEADS, group - done)
        head = kv_head * group + done
        state[:, 0] = LOWEST
        state[:, 1] = 0.0
        sums[:] = 0.0
        first = q.ctypes.data + (row * q.shape[1] + head * head_dim) * 4
        start = 0
        while start < length:
            block, offset = table[start // block_size], start % block_size
            num_keys = min(min(16, block_size - offset), length - start)
            key = keys[layer, block, kv_head, offset // 16].ctypes.data
            value = values[layer, block, kv_head, offset].ctypes.data
            if count == 4:
                attend_4(first, key, value, state.ctypes.data, sums.ctypes.data, num_keys, head_dim, width)
            elif count == 3:
                attend_3(first, key, value, state.ctypes.data, sums.ctypes.data, num_keys, head_dim, width)
            elif count == 2:
                attend_2(first, key, value, state.ctypes.data, sums.ctypes.data, num_keys, head_dim, width)
            else:
                attend_1(first, key, value, state.ctypes.data, sums.ctypes.data, num_keys, head_dim, width)
            start += num_keys
        for i in range(count):
            inverse = np.float32(1.0) / state[i, 1]
            for d in range(head_dim):
                out[row, (head + i) * head_dim + d] = sums[i, d] * inverse
        done += count


@part
def store_row(k, v, keys, values, layer, slot, kv_head):  # type: ignore[no-untyped-def]
    """Writes one head's K and V, [head_dim] each, into `slot` of `layer`; PAD_SLOT writes nowhere."""
    if slot == PAD_SLOT:
        return
    block_size = values.shape[3]
    block, offset = slot // block_size, slot % block_size
    column = keys[layer, block, kv_head, offset // 16, :, offset % 16]
    row = values[layer, block, kv_head, offset]
    for d in range(keys.shape[4]):
        column[d] = k[d]
        row[d] = v[d]


@kernel
def attention_kernel(thread, threads, q, plan, cache, layer, running, out):  # type: ignore[no-untyped-def]
    """All (row, kv head) pairs of a step."""
    count = q.shape[0] * cache[0].shape[2]
    pieces = num_pieces(count, threads)
    start, end = claim(count, pieces, 0, threads)
    while start < end:
        for item in range(start, end):
            attend(q, plan, cache, layer, item, out, running[thread])
        finish(0, threads)
        start, end = claim(count, pieces, 0, threads)
    wait(pieces, 0, threads)


@kernel
def store_kernel(thread, threads, k, v, keys, values, layer, slots):  # type: ignore[no-untyped-def]
    """k, v: [num_tokens, kv_heads, head_dim] float32."""
    pieces = num_pieces(slots.shape[0], threads)
    start, end = claim(slots.shape[0], pieces, 0, threads)
    while start < end:
        for row in range(start, end):
            for kv_head in range(k.shape[1]):
                store_row(k[row, kv_head], v[row, kv_head], keys, values, layer, slots[row], kv_head)
        finish(0, threads)
        start, end = claim(slots.shape[0], pieces, 0, threads)
    wait(pieces, 0, threads)


def running_buffers(num_threads: int, cache: TransposedCache) -> NDArray[np.float32]:
    """What attention carries from tile to tile, a thread a row."""
    return aligned((num_threads, MAX_HEADS * (2 + cache.values.shape[4])), np.float32)


def scaled_queries(q: torch.Tensor, scale: float) -> NDArray[np.float32]:
    """q: [num_tokens, num_heads, head_dim] float32 -> [num_tokens, num_heads * head_dim], times scale * log2(e)."""
    rows: NDArray[np.float32] = (q * (scale * LOG2_E)).flatten(1).contiguous().numpy()
    return rows
