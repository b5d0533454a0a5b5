"""Linear layers over quantised weights: the packed handle, and the loops that cut a product into tiles for threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from octavo_kernels.numba_compile import kernel, part
from octavo_kernels.numba_dot import (
    VECTORS,
    tile4_1,
    tile4_2,
    tile4_4,
    tile4_8,
    tile8_1,
    tile8_2,
    tile8_4,
    tile8_8,
)
from octavo_kernels.numba_threads import ThreadPool, claim, finish, num_pieces, wait
from octavo_kernels.numba_vector import LANES, quantize_group
from octavo_kernels.quantized_weight import GROUP, QuantizedWeight

WEIGHT, SCALES, BIAS, BITS, NUM_TILES, NUM_GROUPS = range(6)
"""Fields of a layer's description, int64[6]: three addresses and three numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLinear:
    """A quantised weight in tiles (see `numba_dot.py`). Rows past `out_features` fill the last tile with zeros."""

    in_features: int
    out_features: int
    bits: int
    codes: NDArray[np.uint8]
    """[num_tiles, num_groups, 64 * vectors], on a boundary of 64 bytes."""
    scales: NDArray[np.float32]
    """[num_tiles, num_groups, 2, 16]: scales, then minima."""
    bias: NDArray[np.float32]
    """[num_tiles * 16]."""

    @property
    def num_tiles(self) -> int:
        return int(self.codes.shape[0])

    @property
    def num_bytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes + self.bias.nbytes

    def describe(self) -> NDArray[np.int64]:
        """What kernels read; valid while this object lives."""
        addresses = (self.codes.ctypes.data, self.scales.ctypes.data, self.bias.ctypes.data)
        return np.array([*addresses, self.bits, self.num_tiles, self.in_features // GROUP], np.int64)


def pack(weight: QuantizedWeight, bias: torch.Tensor | None) -> PackedLinear:
    """Repacks once; bias: [out] of any floating dtype."""
    out_features, in_features = weight.codes.shape
    num_tiles, num_groups = -(-out_features // LANES), in_features // GROUP
    # q: [num_tiles, 16, num_groups, 8, 4] uint8
    q = _padded(weight.codes, num_tiles).reshape(num_tiles, LANES, num_groups, 8, 4)
    if weight.bits == 4:
        q = q[..., :4, :] | (q[..., 4:, :] << 4)
    codes = aligned((num_tiles, num_groups, 64 * VECTORS[weight.bits]), np.uint8)
    codes.reshape(num_tiles, num_groups, -1, LANES, 4)[:] = q.transpose(0, 2, 3, 1, 4)
    scales = aligned((num_tiles, num_groups, 2, LANES), np.float32)
    for i, values in enumerate((weight.scales, weight.minima)):
        scales[:, :, i] = _padded(values, num_tiles).reshape(num_tiles, LANES, num_groups).swapaxes(1, 2)
    full_bias = aligned((num_tiles * LANES,), np.float32)
    if bias is not None:
        full_bias[:out_features] = bias.float().cpu().numpy()
    return PackedLinear(
        in_features=in_features,
        out_features=out_features,
        bits=weight.bits,
        codes=codes,
        scales=scales,
        bias=full_bias,
    )


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
        pool.run(_linear, 2, x.contiguous().numpy(), packed.describe(), codes, scales, out.numpy())
    return out[:, : packed.out_features]


def activation_buffers(num_tokens: int, in_features: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Room for quantised activations: codes [num_tokens, in] and pairs [num_tokens, in / 32, 2]."""
    return np.empty((num_tokens, in_features), np.int8), np.empty((num_tokens, in_features // GROUP, 2), np.float32)


@part
def quantize_row(x, row, codes, scales):  # type: ignore[no-untyped-def]
    """x: the address of [in] float32 -> that row of codes: [num_tokens, in] int8, scales: [num_tokens, in / 32, 2]."""
    quantize_part(x, row, 0, scales.shape[1], codes, scales)


@part
def quantize_part(x, row, start, end, codes, scales):  # type: ignore[no-untyped-def]
    """As `quantize_row`, of groups `start` to `end` only; x is where the first of them begins."""
    target = codes.ctypes.data + row * codes.shape[1]
    pairs = scales.ctypes.data + row * scales.shape[1] * 8
    for group in range(start, end):
        quantize_group(x + (group - start) * 128, target + group * 32, pairs + group * 8)


@part
def _multiply_tile4(layer, tile, codes, scales, out):  # type: ignore[no-untyped-def]
    """`multiply_tile` for codes of 4 bits."""
    num_groups = layer[NUM_GROUPS]
    weight, weight_scales = layer[WEIGHT] + tile * num_groups * 256, layer[SCALES] + tile * num_groups * 128
    bias, stride = layer[BIAS] + tile * 64, out.shape[1] * 4
    x, pairs, target = codes.ctypes.data, scales.ctypes.data, out.ctypes.data + tile * 64
    left = codes.shape[0]
    while left > 0:
        if left >= 8:
            count = 8
            tile4_8(weight, weight_scales, bias, x, pairs, target, num_groups, stride)
        elif left >= 4:
            count = 4
            tile4_4(weight, weight_scales, bias, x, pairs, target, num_groups, stride)
        elif left >= 2:
            count = 2
            tile4_2(weight, weight_scales, bias, x, pairs, target, num_groups, stride)
        else:
            count = 1
            tile4_1(weight, weight_scales, bias, x, pairs, target, num_groups, stride)
        x += count * num_groups * 32
        pairs += count * num_groups * 8
        target += count * stride
        left -= count


@part
def _multiply_tile8(layer, tile, codes, scales, out):  # type: ignore[no-untyped-def]
    """`multiply_tile` for codes of 8 bits."""
    num_groups = layer[NUM_GROUPS]
    weight, weight_scales = layer[WEIGHT] + tile * num_groups * 512, layer[SCALES] + tile * num_groups * 128
    bias, stride = layer[BIAS] + tile * 64, out.shape[1] * 4
    x, pairs, target = codes.ctypes.data, scales.ctypes.data, out.ctypes.data + tile * 64
    left = codes.shape[0]
    while left > 0:
        if left >= 8:
            count = 8
            tile8_8(weight, weight_scales, bias, x, pairs, target, num_groups, stride)
        elif left >= 4:
            count = 4
            tile8_4(weight, weight_scales, bias, x, pairs, target, num_groups, stride)
        elif left >= 2:
            count = 2
            tile8_2(weight, weight_scales, bias, x, pairs, target, num_groups, stride)
        else:
            count = 1
            tile8_1(weight, weight_scales, bias, x, pairs, target, num_groups, stride)
        x += count * num_groups * 32
        pairs += count * num_groups * 8
        target += count * stride
        left -= count


@part
def multiply_tile(layer, tile, codes, scales, out):  # type: ignore[no-untyped-def]
    """Columns 16 * tile … + 15 of all rows of out: [num_tokens, out], from codes: [num_tokens, in] and their scales."""
    if layer[BITS] == 4:
        _multiply_tile4(layer, tile, codes, scales, out)
    else:
        _multiply_tile8(layer, tile, codes, scales, out)


@part
def quantize_rows(x, codes, scales, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: x: [num_tokens, in] float32 -> codes and scales."""
    pieces = num_pieces(x.shape[0], threads)
    start, end = claim(x.shape[0], pieces, phase, threads)
    while start < end:
        for row in range(start, end):
            quantize_row(x.ctypes.data + row * x.shape[1] * 4, row, codes, scales)
        finish(phase, threads)
        start, end = claim(x.shape[0], pieces, phase, threads)
    wait(pieces, phase, threads)


@part
def multiply(layer, codes, scales, out, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: all columns of out: [num_tokens, out] float32."""
    pieces = num_pieces(layer[NUM_TILES], threads)
    start, end = claim(layer[NUM_TILES], pieces, phase, threads)
    while start < end:
        for tile in range(start, end):
            multiply_tile(layer, tile, codes, scales, out)
        finish(phase, threads)
        start, end = claim(layer[NUM_TILES], pieces, phase, threads)
    wait(pieces, phase, threads)


@kernel
def _linear(thread, threads, x, layer, codes, scales, out):  # type: ignore[no-untyped-def]
    quantize_rows(x, codes, scales, 0, threads)
    multiply(layer, codes, scales, out, 1, threads)
