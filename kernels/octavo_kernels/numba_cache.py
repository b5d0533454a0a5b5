"""A paged cache of float16 whose K lies transposed, so that 16 keys are one vector and no sum crosses lanes.

K: [layers, blocks, kv_heads, tiles, head_dim, 16], a tile being 16 slots of a block; a block size that is no multiple
of 16 leaves the end of its last tile unused. V: [layers, blocks, kv_heads, block_size, width], head_dim padded to a
multiple of 16. Half the bytes of float32, for reading them is what decodes at large batches wait for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo_kernels.batches import PAD_SLOT
from octavo_kernels.errors import KernelError
from octavo_kernels.handles import KVCacheSpec
from octavo_kernels.numba_compile import kernel, part
from octavo_kernels.numba_threads import claim, finish, num_pieces
from octavo_kernels.numba_vector import FLOAT, FLOATS, LANES, WORD, Emitter, vector_function

MAX_HEAD_DIM = 512
"""What a thread's memory for attention has room for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransposedCache:
    """K and V of all layers, as the bits of float16."""

    spec: KVCacheSpec
    keys: NDArray[np.uint16]
    values: NDArray[np.uint16]


def allocate_cache(spec: KVCacheSpec) -> TransposedCache:
    """Zeros that take memory only once they are written."""
    if spec.head_dim > MAX_HEAD_DIM or spec.head_dim % 2:
        raise KernelError(f"head_dim is {spec.head_dim}, must be even and at most {MAX_HEAD_DIM}")
    heads = (spec.num_layers, spec.num_blocks, spec.num_kv_heads)
    num_tiles, width = -(-spec.block_size // LANES), -(-spec.head_dim // LANES) * LANES
    return TransposedCache(
        spec=spec,
        keys=np.zeros((*heads, num_tiles, spec.head_dim, LANES), np.uint16),
        values=np.zeros((*heads, spec.block_size, width), np.uint16),
    )


def _store_key(e: Emitter, source: Any, target: Any, count: Any) -> None:
    b, k, column = e.builder, e.base(source), e.base(target)

    def write(offset: Any, kind: Any) -> None:
        values = e.load(k, offset, kind)
        halves = e.narrow(values if kind == FLOATS else e.splat(values))
        place = e.times(offset, 2 * LANES // 4)
        for lane in range(LANES if kind == FLOATS else 1):
            e.store(b.extract_element(halves, WORD(lane)), column, e.sum(place, place.type(2 * LANES * lane)))

    e.each(count, write)


def _store_value(e: Emitter, source: Any, target: Any, count: Any) -> None:
    b, v, row = e.builder, e.base(source), e.base(target)

    def write(offset: Any, kind: Any) -> None:
        values = e.load(v, offset, kind)
        halves = e.narrow(values if kind == FLOATS else e.splat(values))
        place = b.lshr(offset, offset.type(1))
        e.store(halves if kind == FLOATS else b.extract_element(halves, WORD(0)), row, place)

    e.each(count, write)


def _rotate(e: Emitter, x: Any, table: Any, factor: Any, half: Any) -> None:
    b, low, sines = e.builder, e.base(x), e.base(_after(e, table, half))
    high, cosines = e.base(_after(e, x, half)), e.base(table)
    scale = e.load(e.base(factor), 0, FLOAT)

    def write(offset: Any, kind: Any) -> None:
        first, second = (b.fmul(e.load(part, offset, kind), e.like(scale, kind)) for part in (low, high))
        cosine, sine = e.load(cosines, offset, kind), e.load(sines, offset, kind)
        e.store(b.fsub(b.fmul(first, cosine), b.fmul(second, sine)), low, offset)
        e.store(b.fadd(b.fmul(second, cosine), b.fmul(first, sine)), high, offset)

    e.each(half, write)


def _after(e: Emitter, address: Any, count: Any) -> Any:
    """The address of float32 number `count`."""
    return e.sum(address, e.times(count, 4))


def _multiply(e: Emitter, x: Any, factor: Any, count: Any) -> None:
    base, scale = e.base(x), e.load(e.base(factor), 0, FLOAT)
    e.each(count, lambda at, kind: e.store(e.builder.fmul(e.load(base, at, kind), e.like(scale, kind)), base, at))


store_key = vector_function(3, _store_key)
"""(k, column, head_dim): float32 -> one lane of a K tile."""

store_value = vector_function(3, _store_value)
"""(v, row, head_dim): float32 -> a row of V."""

rotate_halves = vector_function(4, _rotate)
"""(x, table, factor, half): x[:half] and x[half:2 * half] rotated in place by table (half cosines, half sines), times
the float32 at `factor`. All addresses but the last."""

multiply_row = vector_function(3, _multiply)
"""(x, factor, count): x times the float32 at `factor`, in place."""


@part
def cache_numbers(cache):  # type: ignore[no-untyped-def]
    """(keys, values, block_size, num_heads) -> two addresses, and (blocks, kv_heads, tiles, head_dim, width, …)."""
    keys, values, block_size, num_heads = cache
    shape = (keys.shape[1], keys.shape[2], keys.shape[3], keys.shape[4], values.shape[4], block_size, num_heads)
    return (keys.ctypes.data, values.ctypes.data), shape


@part
def place_of(layer, block, offset, kv_head, places, shape):  # type: ignore[no-untyped-def]
    """Addresses of the K tile and the V row that hold a slot."""
    num_blocks, num_kv_heads, num_tiles, head_dim, width, block_size, _ = shape
    head = (layer * num_blocks + block) * num_kv_heads + kv_head
    key = places[0] + (head * num_tiles + offset // 16) * head_dim * 32
    return key, places[1] + (head * block_size + offset) * width * 2


@part
def store_row(k, v, places, shape, layer, slot, kv_head):  # type: ignore[no-untyped-def]
    """Writes one head's K and V, addresses of [head_dim] float32, into `slot` of `layer`; PAD_SLOT writes nowhere."""
    if slot == PAD_SLOT:
        return
    block = slot // shape[5]
    offset = slot - block * shape[5]
    key, value = place_of(layer, block, offset, kv_head, places, shape)
    store_key(k, key + offset % 16 * 2, shape[3])
    store_value(v, value, shape[3])


@kernel
def store_kernel(threads, k, v, cache, layer, slots):  # type: ignore[no-untyped-def]
    """k, v: [num_tokens, kv_heads, head_dim] float32."""
    places, shape = cache_numbers(cache)
    pieces = num_pieces(slots.shape[0], threads)
    done, (start, end) = 0, claim(slots.shape[0], pieces, 0, threads)
    while start < end:
        for row in range(start, end):
            for kv_head in range(k.shape[1]):
                place = (row * k.shape[1] + kv_head) * k.shape[2] * 4
                store_row(k.ctypes.data + place, v.ctypes.data + place, places, shape, layer, slots[row], kv_head)
        done, (start, end) = done + end - start, claim(slots.shape[0], pieces, 0, threads)
    finish(done, slots.shape[0], 0, threads)
