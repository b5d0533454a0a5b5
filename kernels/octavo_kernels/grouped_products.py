"""Grouped products of rows sorted by expert, of matrices as in the checkpoint or of float8: the two halves of fused_moe.py.

| kernel | a program | reads | writes |
|---|---|---|---|
| gate_up | one tile of pairs, some inner columns | x by the pair's token; gate and up of the tile's expert | silu(gate) * up by pair |
| down | one tile of pairs, some hidden columns | that by pair; down of the tile's expert | weight * product by pair, float32 |

Accumulates in float32. Weights are [num_experts, rows, columns] contiguous; addresses are int64. Of float8 both operands
are codes, which the matrix units multiply as they are: a step of BLOCK_K is added up by them, steps in float32. The rows
are rounded to codes on the way, each with a scale of its own, as fp8_linear.py does.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from octavo_kernels.expert_matrices import Fp8Matrices
from octavo_kernels.fp8_linear import quantize_rows
from octavo_kernels.launch import ceil_div, dot_precision, is_interpreted
from octavo_kernels.moe_tiles import ExpertTiles
from octavo_kernels.overlap import await_inputs, overlapped


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTiling:
    """How a product is cut and launched."""

    tile: int
    """Pairs that a program has, all of one expert."""
    block_n: int
    """Columns of what is written."""
    block_k: int
    """Of the sum, a step; of float8 twice as many, which are as many bytes."""
    num_warps: int
    num_stages: int


# num_pairs changes from step to step, and each value that Triton looks at would be another kernel to compile
@triton.jit(do_not_specialize=["num_pairs"])
def moe_gate_up_kernel(
    p_x,
    p_gate_up,
    p_inner,
    p_x_scale,
    p_weight_scale,
    p_order,
    p_experts,
    stride_x,
    num_pairs,
    num_chosen,
    hidden,
    inner,
    TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    MAX_IMPRECISE: tl.constexpr,
    IS_WIDENED: tl.constexpr,
    IS_OVERLAPPED: tl.constexpr,
):
    await_inputs(IS_OVERLAPPED)
    num_column_blocks = tl.cdiv(inner, BLOCK_N)
    i_tile = tl.program_id(0) // num_column_blocks
    i_expert = tl.load(p_experts + i_tile).to(tl.int64)
    if i_expert < 0:
        return
    o_pair = tl.load(p_order + i_tile * TILE + tl.arange(0, TILE)).to(tl.int64)
    m_pair = o_pair < num_pairs
    o_column = (tl.program_id(0) % num_column_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_column = o_column < inner
    p_row = p_x + (o_pair // num_chosen) * stride_x
    p_gate = p_gate_up + 2 * i_expert * inner * hidden + o_column.to(tl.int64) * hidden
    p_up = p_gate_up + (2 * i_expert + 1) * inner * hidden + o_column.to(tl.int64) * hidden

    # b_gate, b_up: [TILE, BLOCK_N] fp32
    b_gate = tl.zeros([TILE, BLOCK_N], tl.float32)
    b_up = tl.zeros([TILE, BLOCK_N], tl.float32)
    for i_k in range(0, hidden, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        m_k = o_k < hidden
        m_weight = m_k[:, None] & m_column[None, :]
        # b_x: [TILE, BLOCK_K], b_gate_weight, b_up_weight: [BLOCK_K, BLOCK_N], dtype of x
        b_x = tl.load(p_row[:, None] + o_k[None, :], mask=m_pair[:, None] & m_k[None, :], other=0.0)
        b_gate_weight = tl.load(p_gate[None, :] + o_k[:, None], mask=m_weight, other=0.0)
        b_up_weight = tl.load(p_up[None, :] + o_k[:, None], mask=m_weight, other=0.0)
        if IS_WIDENED:
            b_x, b_gate_weight, b_up_weight = (
                b_x.to(tl.float32),
                b_gate_weight.to(tl.float32),
                b_up_weight.to(tl.float32),
            )
        b_gate = tl.dot(b_x, b_gate_weight, b_gate, input_precision=PRECISION, max_num_imprecise_acc=MAX_IMPRECISE)
        b_up = tl.dot(b_x, b_up_weight, b_up, input_precision=PRECISION, max_num_imprecise_acc=MAX_IMPRECISE)

    if p_x_scale is not None:
        # b_x_scale: [TILE] fp32
        b_x_scale = tl.load(p_x_scale + o_pair // num_chosen, mask=m_pair, other=0.0)
        p_scale = p_weight_scale + 2 * i_expert * inner + o_column
        b_gate *= b_x_scale[:, None] * tl.load(p_scale, mask=m_column, other=0.0)[None, :]
        b_up *= b_x_scale[:, None] * tl.load(p_scale + inner, mask=m_column, other=0.0)[None, :]
    b_inner = b_gate / (1.0 + tl.exp(-b_gate)) * b_up
    p_out = p_inner + o_pair[:, None] * inner + o_column[None, :]
    tl.store(p_out, b_inner.to(p_inner.dtype.element_ty), mask=m_pair[:, None] & m_column[None, :])


@triton.jit(do_not_specialize=["num_pairs"])
def moe_down_kernel(
    p_inner,
    p_down,
    p_expert_weights,
    p_part,
    p_x_scale,
    p_weight_scale,
    p_order,
    p_experts,
    num_pairs,
    hidden,
    inner,
    TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    MAX_IMPRECISE: tl.constexpr,
    IS_WIDENED: tl.constexpr,
    IS_OVERLAPPED: tl.constexpr,
):
    await_inputs(IS_OVERLAPPED)
    num_column_blocks = tl.cdiv(hidden, BLOCK_N)
    i_tile = tl.program_id(0) // num_column_blocks
    i_expert = tl.load(p_experts + i_tile).to(tl.int64)
    if i_expert < 0:
        return
    o_pair = tl.load(p_order + i_tile * TILE + tl.arange(0, TILE)).to(tl.int64)
    m_pair = o_pair < num_pairs
    o_column = (tl.program_id(0) % num_column_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_column = o_column < hidden
    p_row = p_inner + o_pair * inner
    p_weight = p_down + i_expert * hidden * inner + o_column.to(tl.int64) * inner

    # b_part: [TILE, BLOCK_N] fp32
    b_part = tl.zeros([TILE, BLOCK_N], tl.float32)
    for i_k in range(0, inner, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        m_k = o_k < inner
        # b_x: [TILE, BLOCK_K], b_weight: [BLOCK_K, BLOCK_N], dtype of x
        b_x = tl.load(p_row[:, None] + o_k[None, :], mask=m_pair[:, None] & m_k[None, :], other=0.0)
        b_weight = tl.load(p_weight[None, :] + o_k[:, None], mask=m_k[:, None] & m_column[None, :], other=0.0)
        if IS_WIDENED:
            b_x, b_weight = b_x.to(tl.float32), b_weight.to(tl.float32)
        b_part = tl.dot(b_x, b_weight, b_part, input_precision=PRECISION, max_num_imprecise_acc=MAX_IMPRECISE)

    # b_share: [TILE] fp32
    b_share = tl.load(p_expert_weights + o_pair, mask=m_pair, other=0.0)
    if p_x_scale is not None:
        b_share *= tl.load(p_x_scale + o_pair, mask=m_pair, other=0.0)
        b_part *= tl.load(p_weight_scale + i_expert * hidden + o_column, mask=m_column, other=0.0)[None, :]
    p_out = p_part + o_pair[:, None] * hidden + o_column[None, :]
    tl.store(p_out, b_part * b_share[:, None], mask=m_pair[:, None] & m_column[None, :])


class Operands(NamedTuple):
    """Of one product; scales of float8 alone."""

    x: torch.Tensor
    weight: torch.Tensor
    x_scale: torch.Tensor | None = None
    weight_scale: torch.Tensor | None = None


def operands_of(x: torch.Tensor, matrices: torch.Tensor | Fp8Matrices) -> Operands:
    """x: [num_rows, any] -> what the matrix units multiply: of float8 codes, which hold nothing of x."""
    if isinstance(matrices, torch.Tensor):
        return Operands(x, matrices)
    codes, scales = quantize_rows(x)
    return Operands(codes, matrices.codes, scales, matrices.scales)


def gate_up_product(
    x: torch.Tensor,
    matrices: torch.Tensor | Fp8Matrices,
    inner_rows: torch.Tensor,
    tiles: ExpertTiles,
    tiling: ExpertTiling,
) -> None:
    """x: [num_tokens, hidden] -> written to inner_rows: [num_pairs, inner], pairs being num_pairs / num_tokens a token."""
    num_pairs, inner = inner_rows.shape
    operands = operands_of(x, matrices)
    moe_gate_up_kernel[(tiles.experts.shape[0] * ceil_div(inner, tiling.block_n),)](
        p_x=operands.x,
        p_gate_up=operands.weight,
        p_inner=inner_rows,
        p_x_scale=operands.x_scale,
        p_weight_scale=operands.weight_scale,
        p_order=tiles.order,
        p_experts=tiles.experts,
        stride_x=operands.x.stride(0),
        num_pairs=num_pairs,
        num_chosen=num_pairs // x.shape[0],
        hidden=x.shape[1],
        inner=inner,
        **_options(operands.x.dtype, tiling),
    )


def down_product(
    operands: Operands, expert_weights: torch.Tensor, parts: torch.Tensor, tiles: ExpertTiles, tiling: ExpertTiling
) -> None:
    """operands: of rows [num_pairs, inner]; expert_weights: a number a pair -> written to parts: [num_pairs, hidden] float32."""
    num_pairs, hidden = parts.shape
    moe_down_kernel[(tiles.experts.shape[0] * ceil_div(hidden, tiling.block_n),)](
        p_inner=operands.x,
        p_down=operands.weight,
        p_expert_weights=expert_weights,
        p_part=parts,
        p_x_scale=operands.x_scale,
        p_weight_scale=operands.weight_scale,
        p_order=tiles.order,
        p_experts=tiles.experts,
        num_pairs=num_pairs,
        hidden=hidden,
        inner=operands.x.shape[1],
        **_options(operands.x.dtype, tiling),
    )


def _options(dtype: torch.dtype, tiling: ExpertTiling) -> dict[str, Any]:
    """Of a launch, for operands of `dtype`."""
    is_fp8 = dtype.itemsize == 1
    block_k = 2 * tiling.block_k if is_fp8 else tiling.block_k
    return {
        "TILE": tiling.tile,
        "BLOCK_N": tiling.block_n,
        "BLOCK_K": block_k,
        "PRECISION": dot_precision(dtype, moe_down_kernel),
        "MAX_IMPRECISE": block_k if is_fp8 else None,
        "IS_WIDENED": dtype == torch.bfloat16 and is_interpreted(moe_down_kernel),
        "num_warps": tiling.num_warps,
        "num_stages": tiling.num_stages,
        **overlapped(),
    }
