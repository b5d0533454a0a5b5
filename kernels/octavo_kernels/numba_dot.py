"""The matrix product of quantised weights and quantised activations, one tile of 32 output rows at a time.

A weight's layout, [out / 32, in / 32, bytes]: one output row a lane, and all that a product reads in the order of reading.
For each group of 32 inputs 32 scales, float16; but for the symmetric kind 32 minima, float16; then vectors of 64 bytes,
which belong to rows 0-15 and 16-31 in turns:
  4 bits  4 of each; byte 4 * lane + j of the v-th holds input 4v + j in its low half, input 16 + 4v + j in its high half
  8 bits  8 of each; byte 4 * lane + j of the v-th holds input 4v + j
Activations are int8 with one scale a group, beside it scale * sum of the codes, by which a minimum is one more
multiply-add, and -128 * that sum as int32, with which the dot product of symmetric codes begins. Codes of weights are
the unsigned operand.

out = (bias + sum over groups of (weight scale * activation scale) * dot + minimum * activation scale * activation sum)
* factor, a power of 2 that keeps a matrix's scales in the range of float16 (the bias is stored divided by it); groups in rising order for every token, however many tokens are done at once: a row's result never depends on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

TILE = 2 * LANES
"""Output rows that are computed together: each value of an activation that is read serves two vectors."""

PAIR_BYTES = 12
"""Of what is kept of a token's group beside its codes: scale, scale * sum, -128 * sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How the codes of a weight are kept."""

    bits: int
    """4 or 8."""
    has_minima: bool
    """False: 8 bits whose zero is code 128 everywhere."""

    @property
    def num_vectors(self) -> int:
        """Of 64 bytes, a group and 16 rows."""
        return self.bits

    @property
    def scale_bytes(self) -> int:
        """Of a tile's group: scales, and minima where it has them."""
        return 2 * TILE * (1 + self.has_minima)

    @property
    def block_bytes(self) -> int:
        """Of a tile's group."""
        return self.scale_bytes + 128 * self.num_vectors


KINDS = (
    Kind(bits=4, has_minima=True),
    Kind(bits=8, has_minima=True),
    Kind(bits=8, has_minima=False),
)

_HALF_TILES = (0, 1)
_BYTES64 = ir.VectorType(BYTE, 64)
_HALVES = ir.VectorType(HALF, 32)


def _codes(e: Emitter, vectors: Sequence[Any], bits: int, quarter: int) -> list[Any]:
    """Codes of inputs 4 * quarter … 4 * quarter + 3 of a group, a vector of 16 x 4 for each in `vectors`."""
    b = e.builder
    if bits == 4 and quarter < 4:
        vectors = [b.and_(vector, e.constant(_BYTES64, 15)) for vector in vectors]
    elif bits == 4:
        vectors = [b.lshr(vector, e.constant(_BYTES64, 4)) for vector in vectors]
    return [b.bitcast(vector, WORDS) for vector in vectors]


class Vnni:
    """Sums of products of bytes, four in one instruction."""

    @staticmethod
    def zero(e: Emitter, _bits: int) -> Any:
        return e.constant(WORDS, 0)

    @staticmethod
    def add(e: Emitter, total: Any, codes: Any, quad: Any, _bits: int) -> Any:
        return e.call("llvm.x86.avx512.vpdpbusd.512", WORDS, total, codes, e.splat(quad))

    @staticmethod
    def sum(_e: Emitter, total: Any, _bits: int) -> Any:
        return total


class Portable:
    """Products of bytes fit 16 bits; of 4-bit codes even the sum of a group's does: 16 * 15 * 128 < 2^15."""

    @staticmethod
    def zero(e: Emitter, bits: int) -> Any:
        return e.constant(_HALVES if bits == 4 else WORDS, 0)

    @staticmethod
    def add(e: Emitter, total: Any, codes: Any, quad: Any, bits: int) -> Any:
        b, eight = e.builder, e.constant(_HALVES, 8)
        w, x = b.bitcast(codes, _HALVES), b.bitcast(e.splat(quad), _HALVES)
        even = b.mul(b.and_(w, e.constant(_HALVES, 255)), b.ashr(b.shl(x, eight), eight))
        odd = b.mul(b.lshr(w, eight), b.ashr(x, eight))
        if bits == 4:
            return e.sum(total, even, odd)
        return e.sum(total, _pair_sums(e, even), _pair_sums(e, odd))

    @staticmethod
    def sum(e: Emitter, total: Any, bits: int) -> Any:
        return _pair_sums(e, total) if bits == 4 else total


def _pair_sums(e: Emitter, halves: Any) -> Any:
    """32 x 16 bits -> 16 x 32 bits, neighbours added."""
    b, sixteen = e.builder, e.constant(WORDS, 16)
    pairs = b.bitcast(halves, WORDS)
    return b.add(b.ashr(pairs, sixteen), b.ashr(b.shl(pairs, sixteen), sixteen))


def _tile(dot: Any, num_tokens: int, kind: Kind, e: Emitter, *arguments: Any) -> None:
    """See `tile_function`."""
    b, tokens = e.builder, range(num_tokens)
    weight, begin, factor, x, x_scales, out, ahead = (e.base(address) for address in arguments[:7])
    num_groups, begin_stride, x_groups, out_stride, num_lines = arguments[7:]
    places = [[b.add(e.times(begin_stride, t), LONG(64 * h)) for h in _HALF_TILES] for t in tokens]
    sums = [[cgutils.alloca_once_value(b, e.load(begin, place, FLOATS)) for place in row] for row in places]
    with cgutils.for_range(b, num_groups, intp=LONG) as loop:
        with cgutils.for_range(b, num_lines, intp=LONG) as lines:
            e.prefetch(ahead, e.times(b.add(b.mul(loop.index, num_lines), lines.index), 64))
        block = b.gep(weight, [e.times(loop.index, kind.block_bytes)])
        codes = [b.gep(x, [e.times(b.add(loop.index, e.times(x_groups, t)), 32)]) for t in tokens]
        scales = [b.gep(x_scales, [e.times(b.add(loop.index, e.times(x_groups, t)), PAIR_BYTES)]) for t in tokens]
        _add_scaled(e, kind, block, scales, sums, _dots(e, dot, kind, block, (codes, scales)))
    last = e.splat(e.load(factor, 0, FLOAT))
    for t, row in enumerate(sums):
        for h, total in enumerate(row):
            e.store(b.fmul(b.load(total), last), out, b.add(e.times(out_stride, t), LONG(64 * h)))


def _dots(e: Emitter, dot: Any, kind: Kind, block: Any, tokens: tuple[list[Any], list[Any]]) -> list[list[Any]]:
    """Of one group: the int32 sums of products, of each token and half of the tile."""
    zero = dot.zero(e, kind.bits)
    dots = [[zero if kind.has_minima else e.splat(e.load(scales, 8, WORD))] * 2 for scales in tokens[1]]
    # quarter by quarter: few vectors of codes are alive at a time, so that all sums stay in registers
    for quarter in range(8):
        first = kind.scale_bytes + 128 * (quarter % kind.num_vectors)
        vectors = [e.load(block, first + 64 * h, _BYTES64, align=64) for h in _HALF_TILES]
        halves = _codes(e, vectors, kind.bits, quarter)
        for t, codes in enumerate(tokens[0]):
            quad = e.load(codes, 4 * quarter, WORD)
            dots[t] = [dot.add(e, total, half, quad, kind.bits) for total, half in zip(dots[t], halves, strict=True)]
    return [[dot.sum(e, total, kind.bits) for total in row] for row in dots]


def _add_scaled(e: Emitter, kind: Kind, block: Any, scales: list[Any], sums: Any, dots: list[list[Any]]) -> None:
    b = e.builder
    for h in _HALF_TILES:
        own = [row[h] for row in sums]
        weight_scale = e.widen(e.load(block, 32 * h, HALVES, align=32))
        for token, row, total in zip(scales, dots, own, strict=True):
            steps = b.fmul(weight_scale, e.splat(e.load(token, 0, FLOAT)))
            b.store(e.multiply_add(b.sitofp(row[h], FLOATS), steps, b.load(total)), total)
        if kind.has_minima:
            minimum = e.widen(e.load(block, 2 * TILE + 32 * h, HALVES, align=32))
            for token, total in zip(scales, own, strict=True):
                b.store(e.multiply_add(minimum, e.splat(e.load(token, 4, FLOAT)), b.load(total)), total)


def tile_function(num_tokens: int, kind: Kind, *, vnni: bool = HAS_VNNI) -> Any:
    """An intrinsic (weight, begin, factor, x, x_scales, out, ahead, num_groups, begin_stride, x_groups, out_stride, num_lines).

    It multiplies the 32 rows of a tile with `num_tokens` tokens. Seven addresses: of the tile's blocks, of the 32 float32
    with which the first token's sums begin, of the factor, of the first token's int8 codes and their scales, of where its 32
    results go, and of what will be read later. Then how many groups are multiplied, bytes from token to token of what sums
    begin with (0: all with the same, the bias), groups from token to token of codes and scales, bytes from token to token of
    results, and how many lines from `ahead` on are asked for, a group: the processor guesses the next ones, but not far
    enough for memory to keep up, and not across the end of a phase.
    """
    return vector_function(12, partial(_tile, Vnni if vnni else Portable, num_tokens, kind))
