"""A linear layer whose every row has the same bits whatever stands beside it, and however many rows there are.

    out[m, n] = sum over k of x[m, k] * weight[n, k] + bias[n]

The vendor's library chooses another kernel, and with it another order of adding, for each number of rows. Here one kernel
with one tile serves all: a program has ROWS rows and COLUMNS columns and walks the whole of k, DEPTH at a step; what pads
the rows is zero. That costs speed, most with few rows, where the device is not full.

The weight stands as in a checkpoint, [out, in]. Accumulates in float32; addresses are int64.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo_kernels.checks import check_linear, check_linear_weight
from octavo_kernels.launch import ceil_div, dot_precision, is_amd, is_interpreted


# each value of num_rows that Triton looks at would be another kernel, and may be compiled to other bits
@triton.jit(do_not_specialize=["num_rows"])
def invariant_linear_kernel(
    p_x,
    p_weight,
    p_bias,
    p_out,
    stride_x,
    stride_weight,
    num_rows,
    num_columns,
    depth,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_WIDENED: tl.constexpr,
):
    # programs that read the same part of the weight stand side by side
    num_row_blocks = tl.cdiv(num_rows, ROWS)
    o_row = (tl.program_id(0) % num_row_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_column = (tl.program_id(0) // num_row_blocks).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    m_row, m_column = o_row < num_rows, o_column < num_columns
    p_rows = p_x + o_row * stride_x
    p_columns = p_weight + o_column * stride_weight

    # b_sum: [ROWS, COLUMNS] fp32
    b_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i_k in range(0, depth, DEPTH):
        o_k = i_k + tl.arange(0, DEPTH)
        m_k = o_k < depth
        # b_x: [ROWS, DEPTH], b_weight: [DEPTH, COLUMNS], dtype of x
        b_x = tl.load(p_rows[:, None] + o_k[None, :], mask=m_row[:, None] & m_k[None, :], other=0.0)
        b_weight = tl.load(p_columns[None, :] + o_k[:, None], mask=m_k[:, None] & m_column[None, :], other=0.0)
        if IS_WIDENED:
            b_x, b_weight = b_x.to(tl.float32), b_weight.to(tl.float32)
        b_sum = tl.dot(b_x, b_weight, b_sum, input_precision=PRECISION)

    if HAS_BIAS:
        b_sum += tl.load(p_bias + o_column, mask=m_column, other=0.0).to(tl.float32)[None, :]
    p_result = p_out + o_row[:, None] * num_columns + o_column[None, :]
    tl.store(p_result, b_sum.to(p_out.dtype.element_ty), mask=m_row[:, None] & m_column[None, :])


def invariant_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x: [num_rows, in], weight: [out, in], bias: [out], one dtype -> new [num_rows, out], dtype of x."""
    check_linear_weight(weight, bias)
    check_linear(x, weight)
    (num_rows, depth), num_columns = x.shape, weight.shape[0]
    out = torch.empty((num_rows, num_columns), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    x, weight = x.contiguous(), weight.contiguous()
    tile = 32 if x.dtype == torch.float32 else 64
    invariant_linear_kernel[(ceil_div(num_rows, tile) * ceil_div(num_columns, tile),)](
        p_x=x,
        p_weight=weight,
        p_bias=bias,
        p_out=out,
        stride_x=x.stride(0),
        stride_weight=weight.stride(0),
        num_rows=num_rows,
        num_columns=num_columns,
        depth=depth,
        HAS_BIAS=bias is not None,
        ROWS=tile,
        COLUMNS=tile,
        DEPTH=tile,
        PRECISION=dot_precision(x.dtype, invariant_linear_kernel),
        IS_WIDENED=x.dtype == torch.bfloat16 and is_interpreted(invariant_linear_kernel),
        num_warps=4,
        num_stages=2 if is_amd() else 4,
    )
    return out
