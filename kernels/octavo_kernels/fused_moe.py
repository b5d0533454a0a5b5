"""The MLPs of a mixture of experts as two grouped products, over rows sorted by expert.

    out[t] = sum over slots s of weight[t, s] * down[e] (silu(gate[e] x[t]) * up[e] x[t]),  e = id[t, s]

Fedus et al., "Switch Transformers", 2021, for the layer; the sort and the tiles of one expert each: moe_tiles.py.

| kernel | a program | reads | writes |
|---|---|---|---|
| gate_up | one tile of pairs, some inner columns | x by the pair's token; gate and up of the tile's expert | silu(gate) * up by pair, dtype of x |
| down | one tile of pairs, some hidden columns | that by pair; down of the tile's expert | weight * product by pair, float32 |
| sum | one token, some columns | its slots' rows, in their order | out |

Accumulates in float32. A row of a tile is computed without regard to the others, and slots are added in their order: a
token's result does not depend on which others are in the step or where the sort put it. How many there are chooses the
tile, and with it how the matrix units add within a step of BLOCK_K: that is rounding alone.
Weights are [num_experts, rows, columns] contiguous; addresses are int64.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo_kernels.checks import check_expert_weights, check_experts
from octavo_kernels.launch import MIN_DOT, ceil_div, dot_precision, is_amd, is_interpreted
from octavo_kernels.moe_align import align
from octavo_kernels.overlap import await_inputs, overlapped

_SUM_BLOCK = 1024


# num_pairs changes from step to step, and each value that Triton looks at would be another kernel to compile
@triton.jit(do_not_specialize=["num_pairs"])
def moe_gate_up_kernel(
    p_x,
    p_gate_up,
    p_inner,
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
        b_gate = tl.dot(b_x, b_gate_weight, b_gate, input_precision=PRECISION)
        b_up = tl.dot(b_x, b_up_weight, b_up, input_precision=PRECISION)

    b_inner = b_gate / (1.0 + tl.exp(-b_gate)) * b_up
    p_out = p_inner + o_pair[:, None] * inner + o_column[None, :]
    tl.store(p_out, b_inner.to(p_inner.dtype.element_ty), mask=m_pair[:, None] & m_column[None, :])


@triton.jit(do_not_specialize=["num_pairs"])
def moe_down_kernel(
    p_inner,
    p_down,
    p_expert_weights,
    p_part,
    p_order,
    p_experts,
    num_pairs,
    hidden,
    inner,
    TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
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
        b_part = tl.dot(b_x, b_weight, b_part, input_precision=PRECISION)

    # b_share: [TILE] fp32
    b_share = tl.load(p_expert_weights + o_pair, mask=m_pair, other=0.0)
    p_out = p_part + o_pair[:, None] * hidden + o_column[None, :]
    tl.store(p_out, b_part * b_share[:, None], mask=m_pair[:, None] & m_column[None, :])


@triton.jit
def moe_sum_kernel(p_part, p_out, num_chosen, hidden, BLOCK: tl.constexpr, IS_OVERLAPPED: tl.constexpr):
    await_inputs(IS_OVERLAPPED)
    i_token = tl.program_id(0).to(tl.int64)
    o_column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_column = o_column < hidden
    # b_sum: [BLOCK] fp32
    b_sum = tl.zeros([BLOCK], tl.float32)
    for i_slot in range(num_chosen):
        b_sum += tl.load(p_part + (i_token * num_chosen + i_slot) * hidden + o_column, mask=m_column, other=0.0)
    tl.store(p_out + i_token * hidden + o_column, b_sum.to(p_out.dtype.element_ty), mask=m_column)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTiling:
    """How a product is cut; see `expert_tiling`."""

    tile: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def expert_tiling(num_pairs: int, num_experts: int, dtype: torch.dtype) -> ExpertTiling:
    """Of few rows an expert, as in decodes, tiles as small as the matrix units allow; of many, as registers hold.

    Two and no more: a warm-up with the largest prefill and with decodes meets both.
    """
    if num_pairs < 32 * num_experts:
        block_k = 32 if dtype == torch.float32 else 64 if is_amd() else 128
        return ExpertTiling(tile=MIN_DOT, block_n=64, block_k=block_k, num_warps=4, num_stages=2 if is_amd() else 3)
    if dtype == torch.float32:
        return ExpertTiling(tile=64, block_n=32, block_k=32, num_warps=8, num_stages=2)
    return ExpertTiling(tile=128, block_n=64, block_k=64, num_warps=8, num_stages=2 if is_amd() else 3)


def fused_moe(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    expert_ids: torch.Tensor,
    expert_weights: torch.Tensor,
    *,
    has_one_tiling: bool = False,
) -> torch.Tensor:
    """See `KernelBackend.experts`; gate_up and down contiguous, silu(gate) * up is rounded to the dtype of x.

    gate_up: [num_experts, 2 * inner, hidden]; down: [num_experts, hidden, inner]. With `has_one_tiling` a token's bits do
    not depend on how many others there are.
    """
    check_expert_weights(gate_up, down)
    check_experts(x, gate_up.shape[2], gate_up.dtype, expert_ids, expert_weights)
    (num_tokens, num_chosen), (num_experts, hidden, inner) = expert_ids.shape, down.shape
    num_pairs = num_tokens * num_chosen
    out = torch.empty((num_tokens, hidden), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    tiling = expert_tiling(0 if has_one_tiling else num_pairs, num_experts, x.dtype)
    tiles = align(expert_ids, num_experts, tiling.tile)
    inner_rows = torch.empty((num_pairs, inner), dtype=x.dtype, device=x.device)
    parts = torch.empty((num_pairs, hidden), dtype=torch.float32, device=x.device)
    num_tiles = tiles.experts.shape[0]
    shared = {
        "p_order": tiles.order,
        "p_experts": tiles.experts,
        "num_pairs": num_pairs,
        "hidden": hidden,
        "inner": inner,
        "TILE": tiling.tile,
        "BLOCK_N": tiling.block_n,
        "BLOCK_K": tiling.block_k,
        "PRECISION": dot_precision(x.dtype, moe_down_kernel),
        "IS_WIDENED": x.dtype == torch.bfloat16 and is_interpreted(moe_down_kernel),
        "num_warps": tiling.num_warps,
        "num_stages": tiling.num_stages,
    }
    moe_gate_up_kernel[(num_tiles * ceil_div(inner, tiling.block_n),)](
        p_x=x,
        p_gate_up=gate_up,
        p_inner=inner_rows,
        stride_x=x.stride(0),
        num_chosen=num_chosen,
        **shared,
        **overlapped(),
    )
    moe_down_kernel[(num_tiles * ceil_div(hidden, tiling.block_n),)](
        p_inner=inner_rows,
        p_down=down,
        p_expert_weights=expert_weights.contiguous(),
        p_part=parts,
        **shared,
        **overlapped(),
    )
    moe_sum_kernel[(num_tokens, ceil_div(hidden, _SUM_BLOCK))](
        p_part=parts,
        p_out=out,
        num_chosen=num_chosen,
        hidden=hidden,
        BLOCK=_SUM_BLOCK,
        num_warps=4,
        **overlapped(),
    )
    return out
