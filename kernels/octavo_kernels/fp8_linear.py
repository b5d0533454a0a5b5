"""A linear layer in float8 (e4m3): a scale for each output of the weight, and one for each token, made on the way.

    out[m, n] = (sum over k of x8[m, k] * w8[n, k]) * x_scale[m] * w_scale[n] + bias[n],  x8[m] = x[m] / x_scale[m]

Few rows are skinny_linear.py's, which widens both operands to float16 and so adds up exact products; more are
`torch._scaled_mm` with a scale for each row and column. That takes x row by row, the weight column by column (w8
transposed), float32 scales of [rows, 1] and [1, columns], inputs and outputs in multiples of 16, and gives bfloat16.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo_kernels.checks import check_fp8_linear
from octavo_kernels.fp8_weight import FP8, Fp8Weight
from octavo_kernels.launch import next_power_of_2
from octavo_kernels.overlap import await_inputs, overlapped
from octavo_kernels.skinny_linear import MAX_ROWS, launch_skinny
from octavo_kernels.split_k import Epilogue, SplitTiling

_BLOCK = 4096
"""Numbers of a row that a program holds at once."""


@triton.jit
def rounded_to_e4m3(b_x):
    """fp32 -> the nearest numbers of e4m3, ties to even: then the conversion is exact, and the interpreter, which forgets to carry, right."""
    b_bits = b_x.to(tl.uint32, bitcast=True)
    b_normal = ((b_bits + 0x7FFFF + ((b_bits >> 20) & 1)) & 0xFFF00000).to(tl.float32, bitcast=True)
    # below 2^-6 the steps are 2^-9, which is the last bit beside 1.5 * 2^14
    b_small = (b_x + 24576.0) - 24576.0
    return tl.where(tl.abs(b_x) < 0.015625, b_small, b_normal)


@triton.jit
def quantize_rows_kernel(p_x, p_codes, p_scales, stride_x, width, BLOCK: tl.constexpr, IS_OVERLAPPED: tl.constexpr):
    await_inputs(IS_OVERLAPPED)
    i_row = tl.program_id(0).to(tl.int64)
    # b_largest: [BLOCK] fp32
    b_largest = tl.zeros([BLOCK], tl.float32)
    for i in range(0, width, BLOCK):
        o_column = i + tl.arange(0, BLOCK)
        b_x = tl.load(p_x + i_row * stride_x + o_column, mask=o_column < width, other=0.0).to(tl.float32)
        # a NaN must come through, or the row would look sound
        b_largest = tl.maximum(b_largest, tl.abs(b_x), propagate_nan=tl.PropagateNan.ALL)
    largest = tl.max(b_largest, axis=0)
    largest = tl.where(tl.sum(b_largest, axis=0) == tl.sum(b_largest, axis=0), largest, float("nan"))
    scale = tl.where(largest == 0.0, 1.0, largest / 448.0)
    tl.store(p_scales + i_row, scale)
    for i in range(0, width, BLOCK):
        o_column = i + tl.arange(0, BLOCK)
        m_column = o_column < width
        b_x = tl.load(p_x + i_row * stride_x + o_column, mask=m_column, other=0.0).to(tl.float32)
        b_code = rounded_to_e4m3(tl.minimum(tl.maximum(b_x / scale, -448.0), 448.0))
        tl.store(p_codes + i_row * width + o_column, b_code.to(p_codes.dtype.element_ty), mask=m_column)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x: [num_rows, width], last dimension contiguous -> [num_rows, width] float8 and scales [num_rows] float32."""
    num_rows, width = x.shape
    codes = torch.empty((num_rows, width), dtype=FP8, device=x.device)
    scales = torch.empty((num_rows,), dtype=torch.float32, device=x.device)
    if num_rows:
        quantize_rows_kernel[(num_rows,)](
            p_x=x,
            p_codes=codes,
            p_scales=scales,
            stride_x=x.stride(0),
            width=width,
            BLOCK=min(_BLOCK, next_power_of_2(width)),
            num_warps=8,
            **overlapped(),
        )
    return codes, scales


def fp8_linear(
    x: torch.Tensor, weight: Fp8Weight, bias: torch.Tensor | None, tiling: SplitTiling | None
) -> torch.Tensor:
    """x: [num_rows, in] bfloat16, weight: [out, in], bias: [out] bfloat16 -> new [num_rows, out] bfloat16.

    tiling: of up to 16 rows by our kernel; None: the vendor's product.
    """
    check_fp8_linear(x, weight, bias)
    if x.shape[0] == 0:
        return torch.empty((0, weight.codes.shape[0]), dtype=x.dtype, device=x.device)
    codes, scales = quantize_rows(x)
    if tiling is None or x.shape[0] > MAX_ROWS:
        return torch._scaled_mm(
            codes,
            weight.codes.t(),
            scale_a=scales.unsqueeze(1),
            scale_b=weight.scales.unsqueeze(0),
            bias=bias,
            out_dtype=x.dtype,
        )
    out = torch.empty((x.shape[0], weight.codes.shape[0]), dtype=x.dtype, device=x.device)
    epilogue = Epilogue(bias=bias, row_scale=scales, column_scale=weight.scales)
    launch_skinny(codes, weight.codes, out, tiling, epilogue)
    return out
