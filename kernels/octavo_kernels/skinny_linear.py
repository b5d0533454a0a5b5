"""A linear layer of few rows, as in decodes: as fast as the weight can be read.

    out[m, n] = (sum over k of x[m, k] * weight[n, k]) * row_scale[m] * column_scale[n] + bias[n],  m < 16

The weight stands as it does in a checkpoint, [out, in], and is the left operand of the matrix units: 64 of its rows
against 16 columns, which are the rows of x. split_k.py says how it is cut, and why a row does not depend on the others.
Accumulates in float32. Operands of float8 are widened to float16, which holds each of their products' factors exactly.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo_kernels.checks import check_linear, check_linear_weight
from octavo_kernels.errors import KernelError
from octavo_kernels.launch import MIN_DOT, ceil_div, dot_precision, is_amd, is_interpreted
from octavo_kernels.overlap import await_inputs, overlapped
from octavo_kernels.split_k import Epilogue, SplitTiling, num_splits, room_for_parts, scaled, sum_splits

MAX_ROWS = MIN_DOT
"""Of x: what the matrix units take at least. More rows are the vendor's product."""


# num_rows changes from step to step, and each value that Triton looks at would be another kernel to compile
@triton.jit(do_not_specialize=["num_rows"])
def skinny_linear_kernel(
    p_x,
    p_weight,
    p_out,
    p_bias,
    p_row_scale,
    p_column_scale,
    factor,
    stride_x,
    num_rows,
    num_columns,
    depth,
    split_depth,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    OPERAND: tl.constexpr,
    IS_OVERLAPPED: tl.constexpr,
):
    await_inputs(IS_OVERLAPPED)
    i_split = tl.program_id(1).to(tl.int64)
    o_row = tl.arange(0, ROWS)
    o_column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_row, m_column = o_row < num_rows, o_column < num_columns
    p_rows = p_x + o_row.to(tl.int64) * stride_x
    p_columns = p_weight + o_column.to(tl.int64) * depth
    first = tl.program_id(1) * split_depth

    # b_sum: [BLOCK_N, ROWS] fp32
    b_sum = tl.zeros([BLOCK_N, ROWS], tl.float32)
    for i_k in range(first, tl.minimum(first + split_depth, depth), BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        m_k = o_k < depth
        # b_weight: [BLOCK_N, BLOCK_K], b_x: [BLOCK_K, ROWS], the operands' dtype
        b_weight = tl.load(p_columns[:, None] + o_k[None, :], mask=m_column[:, None] & m_k[None, :], other=0.0)
        b_x = tl.load(p_rows[None, :] + o_k[:, None], mask=m_row[None, :] & m_k[:, None], other=0.0)
        b_sum = tl.dot(b_weight.to(OPERAND), b_x.to(OPERAND), b_sum, input_precision=PRECISION)

    m_out = m_row[None, :] & m_column[:, None]
    p_result = p_out + i_split * num_rows * num_columns + o_row.to(tl.int64)[None, :] * num_columns + o_column[:, None]
    if IS_SPLIT:
        tl.store(p_result, b_sum, mask=m_out)
    else:
        b_out = scaled(b_sum, o_row, o_column, m_row, m_column, p_bias, p_row_scale, p_column_scale, factor)
        tl.store(p_result, b_out.to(p_out.dtype.element_ty), mask=m_out)


def default_tiling(num_columns: int, depth: int, dtype: torch.dtype, num_processors: int) -> SplitTiling:
    """What no measurement has said otherwise of: a step reads 16 KiB of the weight, several of them are in flight."""
    return tiling_of(num_columns, depth, dtype, num_processors, block_n=64, num_stages=4)


def tiling_of(
    num_columns: int, depth: int, dtype: torch.dtype, num_processors: int, *, block_n: int, num_stages: int
) -> SplitTiling:
    """Steps as wide as `block_n` columns allow, and as many splits as fill the device."""
    block_k = (64 if is_amd() else 128) * 2 // dtype.itemsize
    return SplitTiling(
        block_n=block_n,
        block_k=block_k,
        splits=num_splits(num_columns, ceil_div(depth, block_k), block_n, num_processors),
        num_warps=4,
        # AMD's chips have 64 KiB to keep what is in flight
        num_stages=min(num_stages, 2) if is_amd() else num_stages,
    )


def skinny_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tiling: SplitTiling
) -> torch.Tensor:
    """x: [num_rows <= 16, in], weight: [out, in] contiguous, bias: [out], one dtype -> new [num_rows, out], dtype of x.

    Raises:
        KernelError: there are more rows.
    """
    check_linear_weight(weight, bias)
    check_linear(x, weight)
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
    launch_skinny(x, weight, out, tiling, Epilogue(bias=bias))
    return out


def launch_skinny(
    x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, tiling: SplitTiling, epilogue: Epilogue
) -> None:
    """x: [num_rows <= 16, in], weight: [out, in] contiguous, of one dtype, float8 too; out: [num_rows, out] contiguous."""
    (num_rows, depth), num_columns = x.shape, weight.shape[0]
    if num_rows > MAX_ROWS:
        raise KernelError(f"x has {num_rows} rows, the kernel for few takes {MAX_ROWS}; use the vendor's product")
    for name, tensor in (("weight", weight), ("x", x)):
        if tensor.stride(-1) != 1 or (tensor is weight and not tensor.is_contiguous()):
            raise KernelError(f"{name} has strides {tensor.stride()}, must be contiguous")
    if out.numel() == 0:
        return
    parts = room_for_parts(out, tiling.splits)
    split_depth = ceil_div(ceil_div(depth, tiling.block_k), tiling.splits) * tiling.block_k
    skinny_linear_kernel[(ceil_div(num_columns, tiling.block_n), tiling.splits)](
        p_x=x,
        p_weight=weight,
        p_out=parts,
        **epilogue.arguments,
        stride_x=x.stride(0),
        num_rows=num_rows,
        num_columns=num_columns,
        depth=depth,
        split_depth=split_depth,
        ROWS=MAX_ROWS,
        BLOCK_N=tiling.block_n,
        BLOCK_K=tiling.block_k,
        IS_SPLIT=tiling.splits > 1,
        PRECISION=dot_precision(x.dtype, skinny_linear_kernel),
        OPERAND=_operand(x.dtype),
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
        **overlapped(),
    )
    sum_splits(parts, out, tiling.splits, epilogue)


def _operand(dtype: torch.dtype) -> tl.dtype:
    """What the matrix units are given."""
    if dtype == torch.bfloat16 and is_interpreted(skinny_linear_kernel):
        return tl.float32
    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}.get(dtype, tl.float16)
