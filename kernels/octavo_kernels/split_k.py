"""Products of few rows and a weight, cut along the sum too, so that every multiprocessor reads a part of the weight.

    out[m, n] = (sum over k of x[m, k] * weight[n, k]) * row_scale[m] * column_scale[n] * factor + bias[n]

A program has some columns of `out` and one split of the sum. Where there are several splits, each leaves its part in
float32 and a second kernel adds them up in their order. How it is cut follows from the weight's shape and the device,
never from the number of rows: with no atomics a row's result is the same bits whatever stands beside it.

What the kernels of several kinds of weights share: skinny_linear.py, w4a16_linear.py, fp8_linear.py.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo_kernels.launch import ceil_div
from octavo_kernels.overlap import await_inputs, overlapped

MAX_SPLITS = 16
"""More would add up longer than they save."""

_PROGRAMS_PER_PROCESSOR = 2
"""To aim at: so many run at once, and each has loads of its own in flight."""

_MIN_STEPS = 4
"""Of a split: fewer would not fill the pipeline of loads."""

_SUM_BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitTiling:
    """How a product is cut and launched."""

    block_n: int
    """Columns of `out` a program has."""
    block_k: int
    """Of the sum, a step."""
    splits: int
    num_warps: int
    num_stages: int


def num_splits(num_columns: int, num_steps: int, block_n: int, num_processors: int) -> int:
    """So many that the device is full, of `_MIN_STEPS` steps or more each, and none of them empty."""
    wanted = ceil_div(_PROGRAMS_PER_PROCESSOR * num_processors, ceil_div(num_columns, block_n))
    splits = max(1, min(wanted, num_steps // _MIN_STEPS, MAX_SPLITS))
    return ceil_div(num_steps, ceil_div(num_steps, splits))


@triton.jit
def scaled(b_sum, o_row, o_column, m_row, m_column, p_bias, p_row_scale, p_column_scale, factor):
    """b_sum: [BLOCK_N, ROWS] fp32 -> what is stored of it, fp32; a pointer that is None is left out."""
    b_out = b_sum * factor
    if p_row_scale is not None:
        b_out *= tl.load(p_row_scale + o_row, mask=m_row, other=0.0)[None, :]
    if p_column_scale is not None:
        b_out *= tl.load(p_column_scale + o_column, mask=m_column, other=0.0)[:, None]
    if p_bias is not None:
        b_out += tl.load(p_bias + o_column, mask=m_column, other=0.0).to(tl.float32)[:, None]
    return b_out


@triton.jit(do_not_specialize=["num_rows"])
def sum_splits_kernel(
    p_part,
    p_out,
    p_bias,
    p_row_scale,
    p_column_scale,
    factor,
    num_rows,
    num_columns,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_OVERLAPPED: tl.constexpr,
):
    await_inputs(IS_OVERLAPPED)
    i_row = tl.program_id(0).to(tl.int64)
    o_row = i_row + tl.arange(0, 1)
    o_column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_column = o_column < num_columns
    p_row = p_part + i_row * num_columns + o_column
    # b_sum: [BLOCK, 1] fp32
    b_sum = tl.zeros([BLOCK], tl.float32)
    for i_split in tl.static_range(SPLITS):
        b_sum += tl.load(p_row + i_split * num_rows.to(tl.int64) * num_columns, mask=m_column, other=0.0)
    b_out = scaled(
        b_sum[:, None], o_row, o_column, o_row < num_rows, m_column, p_bias, p_row_scale, p_column_scale, factor
    )
    p_result = p_out + o_row[None, :] * num_columns + o_column[:, None]
    tl.store(p_result, b_out.to(p_out.dtype.element_ty), mask=m_column[:, None])


@dataclass(frozen=True, slots=True, kw_only=True)
class Epilogue:
    """What happens to the whole sum before it is rounded."""

    bias: torch.Tensor | None = None
    """[num_columns], any floating dtype."""
    row_scale: torch.Tensor | None = None
    """[num_rows] float32."""
    column_scale: torch.Tensor | None = None
    """[num_columns] float32."""
    factor: float = 1.0

    @property
    def arguments(self) -> dict[str, object]:
        """As the kernels call them."""
        return {
            "p_bias": self.bias,
            "p_row_scale": self.row_scale,
            "p_column_scale": self.column_scale,
            "factor": self.factor,
        }


def room_for_parts(out: torch.Tensor, splits: int) -> torch.Tensor:
    """Where splits leave their parts: [splits, num_rows, num_columns] float32; `out` itself where there is but one."""
    if splits == 1:
        return out
    return torch.empty((splits, *out.shape), dtype=torch.float32, device=out.device)


def sum_splits(parts: torch.Tensor, out: torch.Tensor, splits: int, epilogue: Epilogue) -> None:
    """parts: as `room_for_parts` gave them -> written to out, [num_rows, num_columns] contiguous."""
    if splits == 1:
        return
    num_rows, num_columns = out.shape
    sum_splits_kernel[(num_rows, ceil_div(num_columns, _SUM_BLOCK))](
        p_part=parts,
        p_out=out,
        **epilogue.arguments,
        num_rows=num_rows,
        num_columns=num_columns,
        SPLITS=splits,
        BLOCK=_SUM_BLOCK,
        num_warps=2,
        **overlapped(),
    )
