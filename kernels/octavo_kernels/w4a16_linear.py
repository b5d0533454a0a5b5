"""A linear layer over a weight of 4 or 8 bits: codes become numbers between memory and the matrix units.

    w[n, k] = scale[g, n] * code[n, k] + minimum[g, n],  g = k / group;  out[m, n] = sum over k of x[m, k] * w[n, k] + bias[n]

Repacked once, so that a program's loads are whole lines: 32 inputs are a chunk, and a chunk's bytes of neighbouring rows
lie side by side.

| tensor | shape | what |
|---|---|---|
| codes, 4 bits | [in / 32, out, 16] uint8 | byte j: input 2 j of the chunk in its low half, input 2 j + 1 in its high half |
| codes, 8 bits | [in / 32, out, 32] uint8 | byte j: input j of the chunk |
| pairs | [in / group, out] int32 | two float16: the scale in the low half, the minimum in the high one, both divided by `factor` |

A weight is rounded to the dtype of x before it is multiplied, in the kernel for few rows and in the one that writes it
out for the vendor's product of many: both compute with the same numbers. split_k.py says how a product is cut.
Frantar et al., "MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on LLMs", 2024, for the idea.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo_kernels.checks import check_packed_linear
from octavo_kernels.launch import ceil_div, dot_precision, is_amd, is_interpreted
from octavo_kernels.overlap import await_inputs, overlapped
from octavo_kernels.packed_weight import CHUNK, PackedWeight
from octavo_kernels.split_k import Epilogue, SplitTiling, num_splits, room_for_parts, scaled, sum_splits

MAX_ROWS = 128
"""More are fewer bytes as a matrix of the dtype of x, written out once for the vendor's product."""

WORKSPACE_BYTES = 64 * 2**20
"""For what is written out of a weight at a time."""

_ROWS = (16, 32, 64)
"""Tiles of x."""


@triton.jit
def dequantized(p_codes, p_pairs, i_chunk, o_column, m, num_columns, BITS: tl.constexpr, GROUP_CHUNKS: tl.constexpr):
    """A chunk of some columns -> [BLOCK_N, 32] fp32, divided by the factor; 0 where the mask is not set."""
    WIDTH: tl.constexpr = 4 * BITS
    p_chunk = p_codes + (i_chunk.to(tl.int64) * num_columns + o_column)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    # b_codes: [BLOCK_N, WIDTH] u8, b_pair: [BLOCK_N] i32; 4 bytes and more are what the compiler loads ahead
    b_codes = tl.load(p_chunk, mask=m[:, None], other=0)
    b_pair = tl.load(p_pairs + (i_chunk // GROUP_CHUNKS).to(tl.int64) * num_columns + o_column, mask=m, other=0)
    b_scale = (b_pair & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    b_minimum = ((b_pair >> 16) & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    if BITS == 4:
        b_codes = tl.interleave(b_codes & 15, b_codes >> 4)
    return whole_number(b_codes) * b_scale[:, None] + b_minimum[:, None]


@triton.jit
def whole_number(b_codes):
    """u8 -> fp32, by the mantissa of 2^23 + code: a chip converts whole numbers at a quarter of its rate."""
    return (b_codes.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


# num_rows changes from step to step, and each value that Triton looks at would be another kernel to compile
@triton.jit(do_not_specialize=["num_rows"])
def w4a16_linear_kernel(
    p_x,
    p_codes,
    p_pairs,
    p_out,
    p_bias,
    p_row_scale,
    p_column_scale,
    factor,
    stride_x,
    num_rows,
    num_columns,
    num_chunks,
    split_chunks,
    BITS: tl.constexpr,
    GROUP_CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEP_CHUNKS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    OPERAND: tl.constexpr,
    IS_OVERLAPPED: tl.constexpr,
):
    await_inputs(IS_OVERLAPPED)
    i_split = tl.program_id(1).to(tl.int64)
    o_row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    o_column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_row, m_column = o_row < num_rows, o_column < num_columns
    # p_inputs: [32, ROWS] pointers
    p_inputs = p_x + o_row.to(tl.int64)[None, :] * stride_x + tl.arange(0, 32)[:, None]
    first = tl.program_id(1) * split_chunks
    last = tl.minimum(first + split_chunks, num_chunks)

    # b_sum: [BLOCK_N, ROWS] fp32
    b_sum = tl.zeros([BLOCK_N, ROWS], tl.float32)
    for i_step in range(first, last, STEP_CHUNKS):
        for i in tl.static_range(STEP_CHUNKS):
            i_chunk = i_step + i
            m_chunk = tl.full([1], i_chunk, tl.int32) < last
            b_weight = dequantized(
                p_codes, p_pairs, i_chunk, o_column, m_column & m_chunk, num_columns, BITS, GROUP_CHUNKS
            )
            # b_x: [32, ROWS], dtype of x
            b_x = tl.load(p_inputs + i_chunk * 32, mask=(m_row & m_chunk)[None, :], other=0.0)
            b_weight = b_weight.to(OPERAND)
            b_sum = tl.dot(b_weight, b_x.to(OPERAND), b_sum, input_precision=PRECISION)

    m_out = m_row[None, :] & m_column[:, None]
    p_result = p_out + i_split * num_rows * num_columns + o_row.to(tl.int64)[None, :] * num_columns + o_column[:, None]
    if IS_SPLIT:
        tl.store(p_result, b_sum, mask=m_out)
    else:
        b_out = scaled(b_sum, o_row, o_column, m_row, m_column, p_bias, p_row_scale, p_column_scale, factor)
        tl.store(p_result, b_out.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit(do_not_specialize=["first_column", "last_column"])
def dequantize_kernel(
    p_codes,
    p_pairs,
    p_weight,
    factor,
    first_column,
    last_column,
    num_columns,
    depth,
    BITS: tl.constexpr,
    GROUP_CHUNKS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    i_chunk = tl.program_id(0)
    o_column = first_column + tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_column = o_column < last_column
    b_weight = dequantized(p_codes, p_pairs, i_chunk, o_column, m_column, num_columns, BITS, GROUP_CHUNKS)
    o_k = i_chunk * 32 + tl.arange(0, 32)
    p_row = p_weight + (o_column - first_column).to(tl.int64)[:, None] * depth + o_k[None, :]
    tl.store(p_row, (b_weight * factor).to(p_weight.dtype.element_ty), mask=m_column[:, None])


def w4a16_tiling(num_columns: int, depth: int, bits: int, dtype: torch.dtype, num_processors: int) -> SplitTiling:
    """A step reads 128 columns of two chunks of 4 bits, of one of 8; of float32 what registers hold."""
    block_n, chunks, num_stages = (32, 1, 2) if dtype == torch.float32 else (128, 2 if bits == 4 else 1, 4)
    return SplitTiling(
        block_n=block_n,
        block_k=chunks * CHUNK,
        splits=num_splits(num_columns, ceil_div(depth, chunks * CHUNK), block_n, num_processors),
        num_warps=4,
        num_stages=2 if is_amd() else num_stages,
    )


def w4a16_linear(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, tiling: SplitTiling) -> torch.Tensor:
    """x: [num_rows, in] of any floating dtype, weight: [out, in], bias: [out], dtype of x -> new [num_rows, out], dtype of x."""
    check_packed_linear(x, weight, bias)
    out = torch.empty((x.shape[0], weight.out_features), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    if x.shape[0] > MAX_ROWS:
        _written_out(x, weight, out)
        return out if bias is None else out.add_(bias)
    _fused(x, weight, out, tiling, Epilogue(bias=bias, factor=weight.factor))
    return out


def _fused(x: torch.Tensor, weight: PackedWeight, out: torch.Tensor, tiling: SplitTiling, epilogue: Epilogue) -> None:
    num_rows, num_columns = out.shape
    step_chunks, num_chunks = tiling.block_k // CHUNK, weight.in_features // CHUNK
    rows = next((rows for rows in _ROWS if rows >= num_rows), _ROWS[-1])
    parts = room_for_parts(out, tiling.splits)
    is_widened = x.dtype == torch.bfloat16 and is_interpreted(w4a16_linear_kernel)
    w4a16_linear_kernel[(ceil_div(num_columns, tiling.block_n), tiling.splits, ceil_div(num_rows, rows))](
        p_x=x,
        p_codes=weight.codes,
        p_pairs=weight.pairs,
        p_out=parts,
        **epilogue.arguments,
        stride_x=x.stride(0),
        num_rows=num_rows,
        num_columns=num_columns,
        num_chunks=num_chunks,
        split_chunks=ceil_div(ceil_div(num_chunks, step_chunks), tiling.splits) * step_chunks,
        BITS=weight.bits,
        GROUP_CHUNKS=weight.group // CHUNK,
        ROWS=rows,
        BLOCK_N=tiling.block_n,
        STEP_CHUNKS=step_chunks,
        IS_SPLIT=tiling.splits > 1,
        PRECISION=dot_precision(x.dtype, w4a16_linear_kernel),
        OPERAND=tl.float32 if is_widened else OPERANDS[x.dtype],
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
        **overlapped(),
    )
    sum_splits(parts, out, tiling.splits, epilogue)


def _written_out(x: torch.Tensor, weight: PackedWeight, out: torch.Tensor) -> None:
    """As many of the weight's rows at a time as the workspace holds."""
    depth, block_n = weight.in_features, 64
    step = max(block_n, WORKSPACE_BYTES // (depth * x.dtype.itemsize) // block_n * block_n)
    workspace = torch.empty((min(step, weight.out_features), depth), dtype=x.dtype, device=x.device)
    for first in range(0, weight.out_features, step):
        last = min(first + step, weight.out_features)
        dequantize_kernel[(depth // CHUNK, ceil_div(last - first, block_n))](
            p_codes=weight.codes,
            p_pairs=weight.pairs,
            p_weight=workspace,
            factor=weight.factor,
            first_column=first,
            last_column=last,
            num_columns=weight.out_features,
            depth=depth,
            BITS=weight.bits,
            GROUP_CHUNKS=weight.group // CHUNK,
            BLOCK_N=block_n,
            num_warps=4,
        )
        torch.mm(x, workspace[: last - first].t(), out=out[:, first:last])


OPERANDS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
"""What the matrix units are given."""
