"""Linear layers over quantised weights: the packed handle, and the loops that cut a product into tiles for threads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from octavo_kernels.numba_compile import kernel, part
from octavo_kernels.numba_dot import (
    SCALE_BYTES,
    VECTORS,
    block_bytes,
    tile4_1,
    tile4_2,
    tile4_4,
    tile4_8,
    tile8_1,
    tile8_2,
    tile8_4,
    tile8_8,
)
from octavo_kernels.numba_threads import ThreadPool, claim, finish, num_pieces
from octavo_kernels.numba_vector import LANES, quantize_group
from octavo_kernels.quantized_weight import GROUP, QuantizedWeight
from octavo_kernels.weight_memory import WeightMemory

WEIGHT, BIAS, FACTOR, BITS, NUM_TILES, NUM_GROUPS = range(6)
"""Fields of a layer's description: three addresses and three numbers."""

_HALF_RANGE = 2.0**15
"""What the largest scale of a matrix is brought close to, half of float16's range, so that small ones stay exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLinear:
    """A quantised weight in tiles (see `numba_dot.py`). Rows past `out_features` fill the last tile with zeros."""

    in_features: int
    out_features: int
    bits: int
    blocks: NDArray[np.uint8]
    """[num_tiles, num_groups, block_bytes(bits)], on a boundary of 64 bytes."""
    bias: NDArray[np.float32]
    """[num_tiles * 16 + 1]: biases divided by the factor, then the factor."""

    @property
    def num_tiles(self) -> int:
        return int(self.blocks.shape[0])

    @property
    def num_bytes(self) -> int:
        return self.blocks.nbytes + self.bias.nbytes

    def describe(self) -> NDArray[np.int64]:
        """What kernels read; valid while this object lives."""
        bias = self.bias.ctypes.data
        addresses = (self.blocks.ctypes.data, bias, bias + 4 * LANES * self.num_tiles)
        return np.array([*addresses, self.bits, self.num_tiles, self.in_features // GROUP], np.int64)


def pack(weight: QuantizedWeight, bias: torch.Tensor | None, memory: WeightMemory) -> PackedLinear:
    """Repacks once, into `memory`; bias: [out] of any floating dtype. Scales are rounded to float16, which those of a GGUF file are."""
    out_features, in_features = weight.codes.shape
    num_tiles, num_groups = -(-out_features // LANES), in_features // GROUP
    # q: [num_tiles, 16, num_groups, 8, 4] uint8
    q = _padded(weight.codes, num_tiles).reshape(num_tiles, LANES, num_groups, 8, 4)
    if weight.bits == 4:
        q = q[..., :4, :] | (q[..., 4:, :] << 4)
    size = (num_tiles, num_groups, block_bytes(weight.bits))
    blocks = memory.take(math.prod(size)).reshape(size)
    codes = blocks[..., SCALE_BYTES:].reshape(num_tiles, num_groups, VECTORS[weight.bits], LANES, 4)
    codes[:] = q.transpose(0, 2, 3, 1, 4)
    assert np.shares_memory(codes, blocks)
    factor = _factor(weight)
    scales = blocks[..., :SCALE_BYTES].view(np.float16).reshape(num_tiles, num_groups, 2, LANES)
    for i, values in enumerate((weight.scales, weight.minima)):
        rows = _padded(values, num_tiles) / factor
        scales[:, :, i] = rows.reshape(num_tiles, LANES, num_groups).swapaxes(1, 2)
    full_bias = aligned((num_tiles * LANES + 1,), np.float32)
    if bias is not None:
        full_bias[:out_features] = bias.float().cpu().numpy() / factor
    full_bias[-1] = factor
    return PackedLinear(
        in_features=in_features, out_features=out_features, bits=weight.bits, blocks=blocks, bias=full_bias
    )


def _factor(weight: QuantizedWeight) -> np.float32:
    """A power of 2, so that dividing by it rounds nothing."""
    largest = max(float(weight.scales.abs().max()), float(weight.minima.abs().max()))
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
    return np.pad(array, ((0, num_tiles * LANES - array.shape[0]), (0, 0)))


def linear(x: torch.Tensor, packed: PackedLinear, pool: ThreadPool) -> torch.Tensor:
    """x: [num_tokens, in] float32 -> [num_tokens, out] float32, rows a multiple of 16 apart."""
    num_tokens = x.shape[0]
    out = torch.empty((num_tokens, packed.num_tiles * LANES), dtype=torch.float32)
    if num_tokens:
        codes, scales = activation_buffers(num_tokens, packed.in_features)
        pool.run(_linear, 2, x.contiguous().numpy(), packed.describe()[None], codes, scales, out.numpy())
    return out[:, : packed.out_features]


def activation_buffers(num_tokens: int, in_features: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Room for quantised activations: codes [num_tokens, in] and pairs [num_tokens, in / 32, 2]."""
    return np.empty((num_tokens, in_features), np.int8), np.empty((num_tokens, in_features // GROUP, 2), np.float32)


@part
def quantize_row(x, row, codes, scales):  # type: ignore[no-untyped-def]
    """x: the address of [in] float32 -> that row of codes: [num_tokens, in] int8, scales: [num_tokens, in / 32, 2]."""
    quantize_part(x, row, 0, scales.shape[1], codes, scales)


@part
def quantize_part(x, row, first, count, codes, scales):  # type: ignore[no-untyped-def]
    """As `quantize_row`, of `count` groups from `first` on only; x is where that one begins."""
    target = codes.ctypes.data + row * codes.shape[1] + first * 32
    pairs = scales.ctypes.data + (row * scales.shape[1] + first) * 8
    for group in range(count):
        quantize_group(x + group * 128, target + group * 32, pairs + group * 8)


@part
def _multiply_tile4(layer, tile, x, out):  # type: ignore[no-untyped-def]
    """`multiply_tile` for codes of 4 bits."""
    num_groups, (codes, pairs, left), (target, stride) = layer[NUM_GROUPS], x, out
    weight, bias, factor = layer[WEIGHT] + tile * num_groups * 320, layer[BIAS] + tile * 64, layer[FACTOR]
    while left > 0:
        if left >= 8:
            count = 8
            tile4_8(weight, bias, factor, codes, pairs, target, num_groups, stride)
        elif left >= 4:
            count = 4
            tile4_4(weight, bias, factor, codes, pairs, target, num_groups, stride)
        elif left >= 2:
            count = 2
            tile4_2(weight, bias, factor, codes, pairs, target, num_groups, stride)
        else:
            count = 1
            tile4_1(weight, bias, factor, codes, pairs, target, num_groups, stride)
        codes += count * num_groups * 32
        pairs += count * num_groups * 8
        target += count * stride
        left -= count


@part
def _multiply_tile8(layer, tile, x, out):  # type: ignore[no-untyped-def]
    """`multiply_tile` for codes of 8 bits."""
    num_groups, (codes, pairs, left), (target, stride) = layer[NUM_GROUPS], x, out
    weight, bias, factor = layer[WEIGHT] + tile * num_groups * 576, layer[BIAS] + tile * 64, layer[FACTOR]
    while left > 0:
        if left >= 8:
            count = 8
            tile8_8(weight, bias, factor, codes, pairs, target, num_groups, stride)
        elif left >= 4:
            count = 4
            tile8_4(weight, bias, factor, codes, pairs, target, num_groups, stride)
        elif left >= 2:
            count = 2
            tile8_2(weight, bias, factor, codes, pairs, target, num_groups, stride)
        else:
            count = 1
            tile8_1(weight, bias, factor, codes, pairs, target, num_groups, stride)
        codes += count * num_groups * 32
        pairs += count * num_groups * 8
        target += count * stride
        left -= count


@part
def multiply_tile(layer, tile, x, out):  # type: ignore[no-untyped-def]
    """16 columns, those of a tile, of all rows.

    layer: a description, as a tuple; x: (address of int8 codes [num_tokens, in], address of their scales, num_tokens);
    out: (address of the first row's 16 float32, bytes from row to row). Numbers alone, for an array counts references,
    in a counter that all threads share.
    """
    if layer[BITS] == 4:
        _multiply_tile4(layer, tile, x, out)
    else:
        _multiply_tile8(layer, tile, x, out)


@part
def described(layers, index):  # type: ignore[no-untyped-def]
    """Row `index` of descriptions [num_layers, 6], as a tuple."""
    return (
        layers[index, 0],
        layers[index, 1],
        layers[index, 2],
        layers[index, 3],
        layers[index, 4],
        layers[index, 5],
    )


@part
def quantize_rows(x, codes, scales, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: x: [num_tokens, in] float32 -> codes and scales."""
    pieces = num_pieces(x.shape[0], threads)
    done, (start, end) = 0, claim(x.shape[0], pieces, phase, threads)
    while start < end:
        for row in range(start, end):
            quantize_row(x.ctypes.data + row * x.shape[1] * 4, row, codes, scales)
        done, (start, end) = done + 1, claim(x.shape[0], pieces, phase, threads)
    finish(done, pieces, phase, threads)


@part
def multiply(layer, codes, scales, out, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: all columns of out: [num_tokens, out] float32."""
    pieces = num_pieces(layer[NUM_TILES], threads)
    x = (codes.ctypes.data, scales.ctypes.data, codes.shape[0])
    target, stride = out.ctypes.data, out.shape[1] * 4
    done, (start, end) = 0, claim(layer[NUM_TILES], pieces, phase, threads)
    while start < end:
        for tile in range(start, end):
            multiply_tile(layer, tile, x, (target + tile * 64, stride))
        done, (start, end) = done + 1, claim(layer[NUM_TILES], pieces, phase, threads)
    finish(done, pieces, phase, threads)


@kernel
def _linear(thread, threads, x, layers, codes, scales, out):  # type: ignore[no-untyped-def]
    quantize_rows(x, codes, scales, 0, threads)
    multiply(described(layers, 0), codes, scales, out, 1, threads)
