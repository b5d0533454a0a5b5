"""The MLPs of a mixture of experts as two grouped products, over rows sorted by expert.

    out[t] = sum over slots s of weight[t, s] * down[e] (silu(gate[e] x[t]) * up[e] x[t]),  e = id[t, s]

Fedus et al., "Switch Transformers", 2021, for the layer; the sort and the tiles of one expert each: moe_tiles.py; the
products: grouped_products.py, and of 4 or 8 bits packed_products.py. A third kernel adds up a token's slots.

A row of a tile is computed without regard to the others, and slots are added in their order: a token's result does not
depend on which others are in the step or where the sort put it. How many there are chooses the tile, and with it how the
matrix units add within a step: that is rounding alone.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo_kernels.checks import check_expert_weights, check_experts
from octavo_kernels.expert_matrices import ExpertMatrices, PackedMatrices, rows_dtype
from octavo_kernels.grouped_products import ExpertTiling, down_product, gate_up_product, operands_of
from octavo_kernels.launch import MIN_DOT, ceil_div, is_amd
from octavo_kernels.moe_align import align
from octavo_kernels.overlap import await_inputs, overlapped
from octavo_kernels.packed_products import packed_down_product, packed_gate_up_product

_SUM_BLOCK = 1024


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
    gate_up: ExpertMatrices,
    down: ExpertMatrices,
    expert_ids: torch.Tensor,
    expert_weights: torch.Tensor,
    *,
    has_one_tiling: bool = False,
) -> torch.Tensor:
    """See `KernelBackend.experts`; silu(gate) * up is rounded to the dtype of x.

    gate_up: (num_experts, 2 * inner, hidden); down: (num_experts, hidden, inner); each may be of another kind. With
    `has_one_tiling` a token's bits do not depend on how many others there are.
    """
    check_expert_weights(gate_up, down)
    check_experts(x, gate_up.shape[2], rows_dtype(x, gate_up, down), expert_ids, expert_weights)
    (num_tokens, num_chosen), (num_experts, hidden, inner) = expert_ids.shape, down.shape
    num_pairs = num_tokens * num_chosen
    out = torch.empty((num_tokens, hidden), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    tiling = expert_tiling(0 if has_one_tiling else num_pairs, num_experts, x.dtype)
    tiles = align(expert_ids, num_experts, tiling.tile)
    shares = expert_weights.contiguous()
    inner_rows = torch.empty((num_pairs, inner), dtype=x.dtype, device=x.device)
    if isinstance(gate_up, PackedMatrices):
        packed_gate_up_product(x, gate_up, inner_rows, tiles)
    else:
        gate_up_product(x, gate_up, inner_rows, tiles, tiling)
    if isinstance(down, PackedMatrices):
        parts = torch.empty((num_pairs, hidden), dtype=torch.float32, device=x.device)
        packed_down_product(inner_rows, down, shares, parts, tiles)
    else:
        operands = operands_of(inner_rows, down)
        # where there are codes of it they take its place before the parts, the most of all, take theirs
        del inner_rows
        parts = torch.empty((num_pairs, hidden), dtype=torch.float32, device=x.device)
        down_product(operands, shares, parts, tiles, tiling)
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
