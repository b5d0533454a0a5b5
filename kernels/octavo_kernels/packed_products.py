"""Grouped products of rows sorted by expert and matrices of 4 or 8 bits: what grouped_products.py does, of few bits.

    w[e, n, k] = scale[e, g, n] * code[e, n, k] + minimum[e, g, n],  g = k / group

Codes become numbers between memory and the matrix units, a chunk of 32 inputs at a time, as in w4a16_linear.py, which
says how a matrix lies in memory; each expert's lies in one piece. The weight is the left operand, where the matrix units
take registers: [columns, 32] against [32, pairs]. It is rounded to the dtype of x before it is multiplied, for few pairs
and for many. Accumulates in float32; addresses are int64.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from octavo_kernels.expert_matrices import PackedMatrices
from octavo_kernels.launch import MIN_DOT, ceil_div, dot_precision, is_amd, is_interpreted
from octavo_kernels.moe_tiles import ExpertTiles
from octavo_kernels.overlap import await_inputs, overlapped
from octavo_kernels.packed_weight import CHUNK
from octavo_kernels.w4a16_linear import OPERANDS, dequantized


# num_pairs changes from step to step, and each value that Triton looks at would be another kernel to compile
@triton.jit(do_not_specialize=["num_pairs"])
def packed_gate_up_kernel(
    p_x,
    p_codes,
    p_pairs,
    p_inner,
    p_order,
    p_experts,
    factor,
    stride_x,
    num_pairs,
    num_chosen,
    num_chunks,
    inner,
    BITS: tl.constexpr,
    GROUP_CHUNKS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEP_CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
    OPERAND: tl.constexpr,
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
    # gate's columns, then up's
    num_columns = 2 * inner
    p_own_codes = p_codes + i_expert * num_chunks * num_columns * (4 * BITS)
    p_own_pairs = p_pairs + i_expert * (num_chunks // GROUP_CHUNKS) * num_columns
    # p_inputs: [32, TILE] pointers
    p_inputs = p_x + (o_pair // num_chosen)[None, :] * stride_x + tl.arange(0, 32)[:, None]

    # b_gate, b_up: [BLOCK_N, TILE] fp32
    b_gate = tl.zeros([BLOCK_N, TILE], tl.float32)
    b_up = tl.zeros([BLOCK_N, TILE], tl.float32)
    for i_step in range(0, num_chunks, STEP_CHUNKS):
        for i in tl.static_range(STEP_CHUNKS):
            i_chunk = i_step + i
            m_chunk = tl.full([1], i_chunk, tl.int32) < num_chunks
            m_weight = m_column & m_chunk
            # b_x: [32, TILE], b_weight: [BLOCK_N, 32], the operands' dtype
            b_x = tl.load(p_inputs + i_chunk * 32, mask=(m_pair & m_chunk)[None, :], other=0.0).to(OPERAND)
            b_weight = dequantized(
                p_own_codes, p_own_pairs, i_chunk, o_column, m_weight, num_columns, BITS, GROUP_CHUNKS
            )
            b_gate = tl.dot(b_weight.to(OPERAND), b_x, b_gate, input_precision=PRECISION)
            b_weight = dequantized(
                p_own_codes, p_own_pairs, i_chunk, o_column + inner, m_weight, num_columns, BITS, GROUP_CHUNKS
            )
            b_up = tl.dot(b_weight.to(OPERAND), b_x, b_up, input_precision=PRECISION)

    b_gate *= factor
    b_inner = b_gate / (1.0 + tl.exp(-b_gate)) * (b_up * factor)
    p_out = p_inner + o_pair[None, :] * inner + o_column[:, None]
    tl.store(p_out, b_inner.to(p_inner.dtype.element_ty), mask=m_pair[None, :] & m_column[:, None])


@triton.jit(do_not_specialize=["num_pairs"])
def packed_down_kernel(
    p_inner,
    p_codes,
    p_pairs,
    p_expert_weights,
    p_part,
    p_order,
    p_experts,
    factor,
    num_pairs,
    num_chunks,
    hidden,
    BITS: tl.constexpr,
    GROUP_CHUNKS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEP_CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
    OPERAND: tl.constexpr,
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
    p_own_codes = p_codes + i_expert * num_chunks * hidden * (4 * BITS)
    p_own_pairs = p_pairs + i_expert * (num_chunks // GROUP_CHUNKS) * hidden
    # p_inputs: [32, TILE] pointers
    p_inputs = p_inner + o_pair[None, :] * (num_chunks * 32) + tl.arange(0, 32)[:, None]

    # b_part: [BLOCK_N, TILE] fp32
    b_part = tl.zeros([BLOCK_N, TILE], tl.float32)
    for i_step in range(0, num_chunks, STEP_CHUNKS):
        for i in tl.static_range(STEP_CHUNKS):
            i_chunk = i_step + i
            m_chunk = tl.full([1], i_chunk, tl.int32) < num_chunks
            # b_x: [32, TILE], b_weight: [BLOCK_N, 32], the operands' dtype
            b_x = tl.load(p_inputs + i_chunk * 32, mask=(m_pair & m_chunk)[None, :], other=0.0).to(OPERAND)
            b_weight = dequantized(
                p_own_codes, p_own_pairs, i_chunk, o_column, m_column & m_chunk, hidden, BITS, GROUP_CHUNKS
            )
            b_part = tl.dot(b_weight.to(OPERAND), b_x, b_part, input_precision=PRECISION)

    # b_share: [TILE] fp32
    b_share = tl.load(p_expert_weights + o_pair, mask=m_pair, other=0.0) * factor
    p_out = p_part + o_pair[None, :] * hidden + o_column[:, None]
    tl.store(p_out, b_part * b_share[None, :], mask=m_pair[None, :] & m_column[:, None])


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTiling:
    """How a product is cut and launched."""

    block_n: int
    step_chunks: int
    num_warps: int
    num_stages: int


def packed_tiling(tile: int, bits: int, dtype: torch.dtype) -> PackedTiling:
    """Of few pairs narrow blocks, so that one token's experts fill the device, and long steps; of many, as registers hold."""
    if dtype == torch.float32:
        return PackedTiling(block_n=32, step_chunks=1, num_warps=4 if tile == MIN_DOT else 8, num_stages=2)
    # a chunk of 8 bits is twice the bytes
    chunks = 8 // bits
    if tile == MIN_DOT:
        return PackedTiling(block_n=32, step_chunks=2 * chunks, num_warps=4, num_stages=2 if is_amd() else 4)
    return PackedTiling(block_n=64, step_chunks=chunks, num_warps=8, num_stages=2 if is_amd() else 3)


def packed_gate_up_product(
    x: torch.Tensor, matrices: PackedMatrices, inner_rows: torch.Tensor, tiles: ExpertTiles
) -> None:
    """As `grouped_products.gate_up_product`; x of any floating dtype."""
    num_pairs, inner = inner_rows.shape
    tiling = packed_tiling(tiles.tile, matrices.bits, x.dtype)
    packed_gate_up_kernel[(tiles.experts.shape[0] * ceil_div(inner, tiling.block_n),)](
        p_x=x,
        p_inner=inner_rows,
        stride_x=x.stride(0),
        num_pairs=num_pairs,
        num_chosen=num_pairs // x.shape[0],
        inner=inner,
        **_shared(x, matrices, tiles, tiling),
    )


def packed_down_product(
    inner_rows: torch.Tensor,
    matrices: PackedMatrices,
    expert_weights: torch.Tensor,
    parts: torch.Tensor,
    tiles: ExpertTiles,
) -> None:
    """As `grouped_products.down_product`."""
    num_pairs, hidden = parts.shape
    tiling = packed_tiling(tiles.tile, matrices.bits, inner_rows.dtype)
    packed_down_kernel[(tiles.experts.shape[0] * ceil_div(hidden, tiling.block_n),)](
        p_inner=inner_rows,
        p_expert_weights=expert_weights,
        p_part=parts,
        num_pairs=num_pairs,
        hidden=hidden,
        **_shared(inner_rows, matrices, tiles, tiling),
    )


def _shared(x: torch.Tensor, matrices: PackedMatrices, tiles: ExpertTiles, tiling: PackedTiling) -> dict[str, Any]:
    """Of both launches."""
    is_widened = x.dtype == torch.bfloat16 and is_interpreted(packed_down_kernel)
    return {
        "p_codes": matrices.codes,
        "p_pairs": matrices.pairs,
        "p_order": tiles.order,
        "p_experts": tiles.experts,
        "factor": matrices.factor,
        "num_chunks": matrices.shape[2] // CHUNK,
        "BITS": matrices.bits,
        "GROUP_CHUNKS": matrices.group // CHUNK,
        "TILE": tiles.tile,
        "BLOCK_N": tiling.block_n,
        "STEP_CHUNKS": tiling.step_chunks,
        "PRECISION": dot_precision(x.dtype, packed_down_kernel),
        "OPERAND": tl.float32 if is_widened else OPERANDS[x.dtype],
        "num_warps": tiling.num_warps,
        "num_stages": tiling.num_stages,
        **overlapped(),
    }
