"""Linear layers over quantised weights: the packed handle, and the loops that cut a product into tiles for threads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from octavo_kernels.numba_compile import HAS_VNNI, kernel, part
from octavo_kernels.numba_dot import KINDS, PAIR_BYTES, TILE, Kind, tile_function
from octavo_kernels.numba_threads import (
    PIECE_BYTES,
    THREAD,
    ThreadPool,
    begin_to_write,
    claim,
    end_writing,
    finish,
    is_open,
    most_taken,
    num_pieces,
    num_taken,
    share_end,
    share_start,
    take,
)
from octavo_kernels.numba_vector import LANES, copy_row, quantize_group
from octavo_kernels.quantized_weight import GROUP, QuantizedWeight
from octavo_kernels.weight_memory import WeightMemory

WEIGHT, BIAS, FACTOR, KIND, NUM_TILES, NUM_GROUPS, TILE_BYTES = range(7)
"""Fields of a layer's description: three addresses and four numbers, KIND an index of `KINDS`."""

_NEAR_BYTES = 20 * 1024
"""Of a tile's blocks, all tokens are multiplied with so many at most before the next are read: they stay in the first
cache. Meanwhile as many are asked for of those that follow."""

_TOKENS = 6 if HAS_VNNI else 4
"""That are multiplied at once: the more, the fewer vectors of codes are taken apart a product; sums stay in registers."""

NEAR_ROWS = 72
"""Rows whose products are computed before what follows them is: of gate and up 18 KiB, which stay in the first cache."""

_HALF_RANGE = 2.0**15
"""What the largest scale of a matrix is brought close to, half of float16's range, so that small ones stay exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLinear:
    """A quantised weight in tiles (see `numba_dot.py`). Rows past `out_features` fill the last tile with zeros."""

    in_features: int
    out_features: int
    kind: Kind
    blocks: NDArray[np.uint8]
    """[num_tiles, num_groups, kind.block_bytes], on a boundary of 64 bytes."""
    bias: NDArray[np.float32]
    """[num_tiles * 32 + 2]: biases divided by the factor, then the factor, then 1."""

    @property
    def num_tiles(self) -> int:
        return int(self.blocks.shape[0])

    @property
    def weight_bytes(self) -> int:
        """Rows that fill the last tile included."""
        return self.blocks.nbytes

    def describe(self) -> NDArray[np.int64]:
        """What kernels read; valid while this object lives."""
        bias = self.bias.ctypes.data
        addresses = (self.blocks.ctypes.data, bias, bias + 4 * TILE * self.num_tiles)
        num_groups = self.in_features // GROUP
        numbers = (KINDS.index(self.kind), self.num_tiles, num_groups, num_groups * self.kind.block_bytes)
        return np.array([*addresses, *numbers], np.int64)


def pack(weight: QuantizedWeight, bias: torch.Tensor | None, memory: WeightMemory) -> PackedLinear:
    """Repacks once, into `memory`; bias: [out] of any floating dtype. Scales are rounded to float16, which those of a GGUF file are."""
    weight = weight.in_small_groups()
    out_features, in_features = weight.codes.shape
    num_tiles, num_groups = -(-out_features // TILE), in_features // GROUP
    kind = Kind(bits=weight.bits, has_minima=not weight.is_symmetric)
    # q: [num_tiles, 2, 16, num_groups, 8, 4] uint8
    q = _padded(weight.codes, num_tiles).reshape(num_tiles, 2, LANES, num_groups, 8, 4)
    if kind.bits == 4:
        q = q[..., :4, :] | (q[..., 4:, :] << 4)
    size = (num_tiles, num_groups, kind.block_bytes)
    blocks = memory.take(math.prod(size)).reshape(size)
    # Four codes move as one number, four times as fast.
    codes = blocks.view(np.uint32)[..., kind.scale_bytes // 4 :].reshape(num_tiles, num_groups, -1, 2, LANES)
    codes[:] = np.ascontiguousarray(q).view(np.uint32)[..., 0].transpose(0, 3, 4, 1, 2)
    assert np.shares_memory(codes, blocks)
    factor = _factor(weight)
    scales = blocks[..., : kind.scale_bytes].view(np.float16).reshape(num_tiles, num_groups, -1, TILE)
    for i, values in enumerate((weight.scales, weight.minima)[: scales.shape[2]]):
        rows = _padded(values, num_tiles) / factor
        scales[:, :, i] = rows.reshape(num_tiles, TILE, num_groups).swapaxes(1, 2)
    full_bias = aligned((num_tiles * TILE + 2,), np.float32)
    if bias is not None:
        full_bias[:out_features] = bias.float().cpu().numpy() / factor
    full_bias[-2:] = factor, 1.0
    return PackedLinear(in_features=in_features, out_features=out_features, kind=kind, blocks=blocks, bias=full_bias)


def _factor(weight: QuantizedWeight) -> np.float32:
    """A power of 2, so that dividing by it rounds nothing."""
    largest = float(weight.scales.abs().max())
    if not weight.is_symmetric:
        largest = max(largest, float(weight.minima.abs().max()))
    if not 0.0 < largest < math.inf:
        return np.float32(1.0)
    exponent = math.frexp(largest / _HALF_RANGE)[1]
    return np.float32(2.0 ** min(max(exponent, -100), 100))


def aligned(shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
    """Zeros on a boundary of 64 bytes."""
    num_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
    memory = np.zeros(num_bytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    values: NDArray[Any] = memory[start : start + num_bytes].view(kind).reshape(shape)
    return values


def _padded(values: torch.Tensor, num_tiles: int) -> NDArray[Any]:
    array: NDArray[Any] = values.cpu().numpy()
    missing = num_tiles * TILE - array.shape[0]
    return np.pad(array, ((0, missing), (0, 0))) if missing else array


def linear(x: torch.Tensor, packed: PackedLinear, pool: ThreadPool) -> torch.Tensor:
    """x: [num_tokens, in] float32 -> [num_tokens, out] float32, rows a multiple of 32 apart."""
    num_tokens = x.shape[0]
    out = torch.empty((num_tokens, packed.num_tiles * TILE), dtype=torch.float32)
    if num_tokens:
        codes, scales = activation_buffers(num_tokens, packed.in_features)
        pool.run(
            _linear,
            2,
            x.contiguous().numpy(),
            packed.describe()[None],
            codes,
            scales,
            piece_memory(pool.num_threads),
            out.numpy(),
            most_pieces=most_pieces(packed.num_tiles, num_tokens, pool.num_threads),
        )
    return out[:, : packed.out_features]


def piece_memory(num_threads: int) -> NDArray[np.float32]:
    """A thread a row: of a piece what is not yet written, one item more, and two products beside it."""
    return aligned((num_threads, (PIECE_BYTES + 3 * NEAR_ROWS * TILE * 4) // 4), np.float32)


def most_pieces(num_tiles: int, num_rows: int, num_threads: int) -> int:
    """Of a phase that multiplies so many tiles."""
    rows = num_rows if num_rows <= NEAR_ROWS else -(-num_rows // NEAR_ROWS) * NEAR_ROWS
    return most_taken(num_tiles * rows * TILE * 4, num_threads)


def activation_buffers(num_tokens: int, in_features: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Room for quantised activations: codes [num_tokens, in] and scales [num_tokens, in / 32, 3] (see `numba_dot.py`)."""
    fields = PAIR_BYTES // 4
    return np.empty((num_tokens, in_features), np.int8), np.empty(
        (num_tokens, in_features // GROUP, fields), np.float32
    )


@part
def quantize_row(x, row, codes, scales):  # type: ignore[no-untyped-def]
    """x: the address of [in] float32 -> that row of codes: [num_tokens, in] int8, scales: [num_tokens, in / 32, 3]."""
    quantize_part(x, row, 0, scales.shape[1], codes, scales)


@part
def quantize_part(x, row, first, count, codes, scales):  # type: ignore[no-untyped-def]
    """As `quantize_row`, of `count` groups from `first` on only; x is where that one begins."""
    target = codes.ctypes.data + row * codes.shape[1] + first * 32
    pairs = scales.ctypes.data + (row * scales.shape[1] + first) * PAIR_BYTES
    for group in range(count):
        quantize_group(x + group * 128, target + group * 32, pairs + group * PAIR_BYTES)


def _multiplier(kind: Kind) -> Any:
    """`multiply_tile` for weights of a kind."""
    one, two, many = (tile_function(count, kind) for count in (1, 2, _TOKENS))
    block_bytes = kind.block_bytes
    near_groups, lines = _NEAR_BYTES // block_bytes, block_bytes // 64

    @part
    def multiply_tile_of_kind(layer, tile, x, out, then):  # type: ignore[no-untyped-def]
        num_groups, (codes, pairs, count), (target, stride) = layer[NUM_GROUPS], x, out
        block = tile_at(layer, tile)
        begin, begin_stride = layer[BIAS] + tile * TILE * 4, 0
        left = count % _TOKENS
        passes = count // _TOKENS + left // 2 + left % 2
        step = -(-num_groups // (-(-num_groups // near_groups)))
        for first in range(0, num_groups, step):
            groups = min(step, num_groups - first)
            is_last = first + groups == num_groups
            # all but the last sums are left as they are
            factor = layer[FACTOR] + (0 if is_last else 4)
            ahead = then if is_last else block + groups * block_bytes
            # a share each pass; nothing where the tile is read again
            num_lines = 0 if ahead == tile_at(layer, tile) else -(-lines // passes)
            row = 0
            while row < count:
                at = row * num_groups + first
                places = (codes + at * 32, pairs + at * PAIR_BYTES, target + row * stride, ahead)
                rest = (groups, begin_stride, num_groups, stride, num_lines)
                if count - row >= _TOKENS:
                    many(block, begin + row * begin_stride, factor, *places, *rest)
                    row += _TOKENS
                elif count - row >= 2:
                    two(block, begin + row * begin_stride, factor, *places, *rest)
                    row += 2
                else:
                    one(block, begin + row * begin_stride, factor, *places, *rest)
                    row += 1
                ahead += groups * num_lines * 64
            begin, begin_stride = target, stride
            block += groups * block_bytes

    return multiply_tile_of_kind


_multiply_tile4, _multiply_tile8, _multiply_tile8_symmetric = (_multiplier(kind) for kind in KINDS)


@part
def tile_at(layer, tile):  # type: ignore[no-untyped-def]
    """The address of a tile."""
    return layer[WEIGHT] + tile * layer[TILE_BYTES]


@part
def num_bytes_asked(layer):  # type: ignore[no-untyped-def]
    """About how many of what follows a tile are asked for while its end is multiplied."""
    return layer[TILE_BYTES] // (-(-layer[TILE_BYTES] // _NEAR_BYTES))


@part
def multiply_tile(layer, tile, x, out, then):  # type: ignore[no-untyped-def]
    """32 columns, those of a tile, of all rows.

    layer: a description, as a tuple; x: (address of int8 codes [num_tokens, in], address of their scales, num_tokens);
    out: (address of the first row's 32 float32, bytes from row to row). Numbers alone, for an array counts references,
    in a counter that all threads share. then: the address of what this thread will read soon after the tile, which is asked for.
    """
    if layer[KIND] == 0:
        _multiply_tile4(layer, tile, x, out, then)
    elif layer[KIND] == 1:
        _multiply_tile8(layer, tile, x, out, then)
    else:
        _multiply_tile8_symmetric(layer, tile, x, out, then)


@part
def described(layers, index):  # type: ignore[no-untyped-def]
    """Row `index` of descriptions [num_layers, 7], as a tuple."""
    return (
        layers[index, 0],
        layers[index, 1],
        layers[index, 2],
        layers[index, 3],
        layers[index, 4],
        layers[index, 5],
        layers[index, 6],
    )


@part
def quantize_rows(x, codes, scales, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: x: [num_tokens, in] float32 -> codes and scales."""
    pieces = num_pieces(x.shape[0], threads)
    done, (start, end) = 0, claim(x.shape[0], pieces, phase, threads)
    while start < end:
        for row in range(start, end):
            quantize_row(x.ctypes.data + row * x.shape[1] * 4, row, codes, scales)
        done, (start, end) = done + end - start, claim(x.shape[0], pieces, phase, threads)
    finish(done, x.shape[0], phase, threads)


@part
def first_tile(layer, num_tiles, num_rows, threads):  # type: ignore[no-untyped-def]
    """The address of what this thread reads first in a phase that multiplies so many tiles with so many rows."""
    num_runs = max(1, -(-num_rows // NEAR_ROWS))
    return tile_at(layer, share_start(num_tiles * num_runs, threads) // num_runs)


@part
def num_items(num_tiles, codes):  # type: ignore[no-untyped-def]
    """Of a phase that multiplies tiles, each with `NEAR_ROWS` of all rows at a time."""
    return num_tiles * (-(-codes.shape[0] // NEAR_ROWS))


@part
def item_of(item, codes, scales):  # type: ignore[no-untyped-def]
    """-> its tile, its first row, and its rows as `multiply_tile` takes them."""
    num_runs, num_groups = -(-codes.shape[0] // NEAR_ROWS), scales.shape[1]
    tile = item // num_runs
    first = (item - tile * num_runs) * NEAR_ROWS
    places = codes.ctypes.data + first * num_groups * 32, scales.ctypes.data + first * num_groups * PAIR_BYTES
    return tile, first, (places[0], places[1], min(NEAR_ROWS, codes.shape[0] - first))


@part
def num_item_bytes(codes):  # type: ignore[no-untyped-def]
    """Of one item's product."""
    return min(NEAR_ROWS, codes.shape[0]) * TILE * 4


@part
def multiply(layer, codes, scales, out, memory, then, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: all columns of out: [num_tokens, out] float32.

    memory: the address of this thread's; then: of what it will read after the phase.
    """
    items, stride, size = num_items(layer[NUM_TILES], codes), out.shape[1] * 4, num_item_bytes(codes)
    pieces = num_taken(items, size, threads)
    piece, start, end = take(items, pieces, phase, threads)
    while start < end:
        multiply_items(layer, codes, scales, (start, end), memory, then, piece, phase, threads)
        if begin_to_write(piece, phase, threads):
            for item in range(start, end):
                tile, first, x = item_of(item, codes, scales)
                target, source = out.ctypes.data + first * stride + tile * TILE * 4, memory + (item - start) * size
                for row in range(x[2]):
                    copy_row(target + row * stride, source + row * TILE * 4, TILE)
            end_writing(end - start, phase, threads)
        piece, start, end = take(items, pieces, phase, threads)


@part
def multiply_items(layer, codes, scales, span, memory, then, piece, phase, threads):  # type: ignore[no-untyped-def]
    """The items of a piece, `num_item_bytes` each, in this thread's memory; fewer where another thread wrote the piece."""
    size, last = num_item_bytes(codes), share_end(num_items(layer[NUM_TILES], codes), threads)
    start, end = span
    for item in range(start, end):
        if not is_open(piece, phase, threads):
            return
        tile, _, x = item_of(item, codes, scales)
        next_tile, _, _ = item_of(item + 1, codes, scales)
        after = then if item + 1 == last else tile_at(layer, next_tile)
        multiply_tile(layer, tile, x, (memory + (item - start) * size, TILE * 4), after)


@kernel
def _linear(threads, x, layers, codes, scales, running, out):  # type: ignore[no-untyped-def]
    memory = running.ctypes.data + threads[THREAD] * running.shape[1] * 4
    layer = described(layers, 0)
    quantize_rows(x, codes, scales, 0, threads)
    then = first_tile(layer, layer[NUM_TILES], x.shape[0], threads)
    multiply(layer, codes, scales, out, memory, then, 1, threads)
