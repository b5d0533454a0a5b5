"""The matrix product of quantised weights and quantised activations, one tile of 16 output rows at a time.

A weight's layout, [out / 16, in / 32, bytes]: one output row a lane, and all that a product reads in the order of reading.
For each group of 32 inputs 16 scales and 16 minima, float16, then vectors of 64 bytes:
  4 bits  4 vectors; byte 4 * lane + j of vector v holds input 4v + j in its low half, input 16 + 4v + j in its high half
  8 bits  8 vectors; byte 4 * lane + j of vector v holds input 4v + j
Activations are int8 with one scale a group, beside it scale * sum of the codes, by which a minimum is one more
multiply-add. Codes of weights are the unsigned operand.

out = (bias + sum over groups of (weight scale * activation scale) * dot + minimum * activation scale * activation sum)
* factor, a power of 2 that keeps a matrix's scales in the range of float16 (the bias is stored divided by it); groups in rising order for every token, however many tokens are done at once: a row's result never depends on others.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from octavo_kernels.numba_compile import HAS_VNNI
from octavo_kernels.numba_vector import (
    BYTE,
    FLOAT,
    FLOATS,
    HALF,
    HALVES,
    LANES,
    LONG,
    WORD,
    WORDS,
    Emitter,
    vector_function,
)

VECTORS = {4: 4, 8: 8}
"""Vectors of 64 bytes a tile and group, by bits."""

SCALE_BYTES = 64
"""Of a tile and group: 16 scales, 16 minima."""

_AHEAD = 4096
"""Bytes from what is read to what is asked for: the processor guesses the next lines, but not far enough for memory
to keep up with one token's product."""

_BYTES64 = ir.VectorType(BYTE, 64)
_HALVES = ir.VectorType(HALF, 32)


def _codes(e: Emitter, base: Any, offset: Any, bits: int) -> list[Any]:
    """Eight vectors of 16 x 4 codes: inputs 0-3, 4-7 … 28-31 of the group."""
    b = e.builder
    raw = [e.load(base, b.add(offset, LONG(SCALE_BYTES + 64 * v)), _BYTES64, align=64) for v in range(VECTORS[bits])]
    if bits == 8:
        return [b.bitcast(vector, WORDS) for vector in raw]
    low = [b.and_(vector, e.constant(_BYTES64, 15)) for vector in raw]
    high = [b.lshr(vector, e.constant(_BYTES64, 4)) for vector in raw]
    return [b.bitcast(vector, WORDS) for vector in (*low, *high)]


def _dot_vnni(e: Emitter, codes: list[Any], quads: list[Any], _bits: int) -> Any:
    total = e.constant(WORDS, 0)
    for vector, quad in zip(codes, quads, strict=True):
        total = e.call("llvm.x86.avx512.vpdpbusd.512", WORDS, total, vector, e.splat(quad))
    return total


def _dot_portable(e: Emitter, codes: list[Any], quads: list[Any], bits: int) -> Any:
    """Products of bytes fit 16 bits; of 4-bit codes even the sum of a group's does: 16 * 15 * 128 < 2^15."""
    b, eight = e.builder, e.constant(_HALVES, 8)
    words, halves = e.constant(WORDS, 0), e.constant(_HALVES, 0)
    for vector, quad in zip(codes, quads, strict=True):
        w, x = b.bitcast(vector, _HALVES), b.bitcast(e.splat(quad), _HALVES)
        even = b.mul(b.and_(w, e.constant(_HALVES, 255)), b.ashr(b.shl(x, eight), eight))
        odd = b.mul(b.lshr(w, eight), b.ashr(x, eight))
        if bits == 4:
            halves = e.sum(halves, even, odd)
        else:
            words = e.sum(words, _pair_sums(e, even), _pair_sums(e, odd))
    return b.add(words, _pair_sums(e, halves))


def _pair_sums(e: Emitter, halves: Any) -> Any:
    """32 x 16 bits -> 16 x 32 bits, neighbours added."""
    b, sixteen = e.builder, e.constant(WORDS, 16)
    pairs = b.bitcast(halves, WORDS)
    return b.add(b.ashr(pairs, sixteen), b.ashr(b.shl(pairs, sixteen), sixteen))


def block_bytes(bits: int) -> int:
    """Bytes of a tile and group."""
    return SCALE_BYTES + 64 * VECTORS[bits]


def _tile(dot: Any, num_tokens: int, bits: int, e: Emitter, *addresses: Any) -> None:
    """See `tile_function`."""
    b = e.builder
    weight, bias, factor, x, x_scales, out = (e.base(address) for address in addresses[:6])
    num_groups, out_stride = addresses[6:]
    # strides of a token, in bytes
    x_stride, scale_stride = e.times(num_groups, 32), e.times(num_groups, 8)
    sums = [cgutils.alloca_once_value(b, e.load(bias, 0, FLOATS)) for _ in range(num_tokens)]
    with cgutils.for_range(b, num_groups, intp=LONG) as loop:
        group = loop.index
        block = e.times(group, block_bytes(bits))
        for line in range(0, block_bytes(bits), 64):
            e.prefetch(weight, b.add(block, LONG(_AHEAD + line)))
        codes = _codes(e, weight, block, bits)
        scale = e.widen(e.load(weight, block, HALVES, align=32))
        minimum = e.widen(e.load(weight, e.sum(block, LONG(2 * LANES)), HALVES, align=32))
        for token, total in enumerate(sums):
            offset = e.sum(e.times(group, 32), e.times(x_stride, token))
            quads = [e.load(x, b.add(offset, LONG(4 * v)), WORD) for v in range(8)]
            offset = e.sum(e.times(group, 8), e.times(scale_stride, token))
            step, step_sum = e.load(x_scales, offset, FLOAT), e.load(x_scales, b.add(offset, LONG(4)), FLOAT)
            product = b.sitofp(dot(e, codes, quads, bits), FLOATS)
            value = e.multiply_add(product, b.fmul(scale, e.splat(step)), b.load(total))
            b.store(e.multiply_add(minimum, e.splat(step_sum), value), total)
    last = e.splat(e.load(factor, 0, FLOAT))
    for token, total in enumerate(sums):
        e.store(b.fmul(b.load(total), last), out, e.times(out_stride, token))


def tile_function(num_tokens: int, bits: int, *, vnni: bool) -> Any:
    """An intrinsic (weight, bias, factor, x, x_scales, out, num_groups, out_stride in bytes) for 16 output rows.

    All but the last two are addresses: of the tile's blocks, its 16 biases and the factor, of the first token's int8
    codes [num_tokens, in] and (scale, scale * sum) pairs, and of where the first token's 16 results go.
    """
    return vector_function(8, partial(_tile, _dot_vnni if vnni else _dot_portable, num_tokens, bits))


tile4_1, tile4_2, tile4_4, tile4_8 = (tile_function(n, 4, vnni=HAS_VNNI) for n in (1, 2, 4, 8))
tile8_1, tile8_2, tile8_4, tile8_8 = (tile_function(n, 8, vnni=HAS_VNNI) for n in (1, 2, 4, 8))
