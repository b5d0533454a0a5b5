"""Low-rank adapters of a step whose rows have different ones: out[t] += scale * B (A x[t]).

Hu et al., "LoRA", 2021; rows gathered by adapter as in Punica (Chen et al., 2023). The sort is that of a mixture of
experts, one expert a row (moe_align.py), made once a step for all layers; rows without an adapter are in no tile.

| kernel | a program | reads | writes |
|---|---|---|---|
| shrink | a tile of rows of one adapter, a slice, a part of `in` | x by row; the slice's A | its part of A x, float32 |
| expand | a tile of rows of one adapter, some outputs of a slice | all parts of A x; B | out, added to in place |

Accumulates in float32. `in` is cut by the shape alone and the parts are added in their order, so that a row's result does
not depend on which others are in the step; how many there are chooses the tile, which is rounding alone.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo_kernels.launch import MIN_DOT, ceil_div, dot_precision, is_amd, is_interpreted, next_power_of_2
from octavo_kernels.lora_weights import LoraWeights, check_lora
from octavo_kernels.moe_align import align
from octavo_kernels.moe_tiles import ExpertTiles

_PART = 1024
"""Inputs that one program of `shrink` takes when rows are few: a decode has too few tiles to fill a device."""

_BLOCK_N = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRows:
    """Which rows of a step have which adapter; the same for all layers."""

    num_tokens: int
    tiles: ExpertTiles


# counts that change from step to step, each of which Triton would compile another kernel for
@triton.jit(do_not_specialize=["num_tokens"])
def lora_shrink_kernel(
    p_x,
    p_a,
    p_parts,
    p_order,
    p_adapters,
    stride_x,
    num_tokens,
    num_slices,
    in_features,
    part,
    RANK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_WIDENED: tl.constexpr,
):
    i_tile = tl.program_id(0)
    i_slice = tl.program_id(1)
    i_part = tl.program_id(2)
    i_adapter = tl.load(p_adapters + i_tile).to(tl.int64)
    if i_adapter < 0:
        return
    o_row = tl.load(p_order + i_tile * TILE + tl.arange(0, TILE)).to(tl.int64)
    m_row = o_row < num_tokens
    o_rank = tl.arange(0, BLOCK_R)
    m_rank = o_rank < RANK
    p_rank = p_a + ((i_adapter * num_slices + i_slice) * RANK + o_rank) * in_features

    # b_low: [TILE, BLOCK_R] fp32
    b_low = tl.zeros([TILE, BLOCK_R], tl.float32)
    for i_k in range(i_part * part, tl.minimum((i_part + 1) * part, in_features), BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        m_k = o_k < in_features
        # b_x: [TILE, BLOCK_K], b_a: [BLOCK_K, BLOCK_R], dtype of x
        b_x = tl.load(p_x + o_row[:, None] * stride_x + o_k[None, :], mask=m_row[:, None] & m_k[None, :], other=0.0)
        b_a = tl.load(p_rank[None, :] + o_k[:, None], mask=m_k[:, None] & m_rank[None, :], other=0.0)
        if IS_WIDENED:
            b_x, b_a = b_x.to(tl.float32), b_a.to(tl.float32)
        b_low = tl.dot(b_x, b_a, b_low, input_precision=PRECISION)

    o_low = ((i_part * num_tokens + o_row) * num_slices + i_slice) * RANK
    tl.store(p_parts + o_low[:, None] + o_rank[None, :], b_low, mask=m_row[:, None] & m_rank[None, :])


@triton.jit(do_not_specialize=["num_tokens"])
def lora_expand_kernel(
    p_parts,
    p_b,
    p_scales,
    p_out,
    p_slice_starts,
    p_order,
    p_adapters,
    stride_out,
    num_tokens,
    num_slices,
    out_features,
    num_parts,
    RANK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_WIDENED: tl.constexpr,
):
    i_tile = tl.program_id(0)
    i_slice = tl.program_id(1)
    i_adapter = tl.load(p_adapters + i_tile).to(tl.int64)
    slice_end = tl.load(p_slice_starts + i_slice + 1)
    o_out = tl.load(p_slice_starts + i_slice) + tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_out = o_out < slice_end
    # a smaller slice has fewer programs than the largest
    if (i_adapter < 0) | (tl.min(o_out, axis=0) >= slice_end):
        return
    o_row = tl.load(p_order + i_tile * TILE + tl.arange(0, TILE)).to(tl.int64)
    m_row = o_row < num_tokens
    o_rank = tl.arange(0, BLOCK_R)
    m_rank = o_rank < RANK
    m_low = m_row[:, None] & m_rank[None, :]
    # b_low: [TILE, BLOCK_R] fp32
    b_low = tl.zeros([TILE, BLOCK_R], tl.float32)
    for i_part in range(num_parts):
        o_low = ((i_part * num_tokens + o_row) * num_slices + i_slice) * RANK
        b_low += tl.load(p_parts + o_low[:, None] + o_rank[None, :], mask=m_low, other=0.0)
    b_low = (b_low * tl.load(p_scales + i_adapter)).to(p_out.dtype.element_ty)
    # b_b: [BLOCK_R, BLOCK_N], dtype of x
    p_output = p_b + (i_adapter * out_features + o_out) * RANK
    b_b = tl.load(p_output[None, :] + o_rank[:, None], mask=m_rank[:, None] & m_out[None, :], other=0.0)
    if IS_WIDENED:
        b_low, b_b = b_low.to(tl.float32), b_b.to(tl.float32)
    b_added = tl.dot(b_low, b_b, input_precision=PRECISION)
    p_row = p_out + o_row[:, None] * stride_out + o_out[None, :]
    m_tile = m_row[:, None] & m_out[None, :]
    b_out = tl.load(p_row, mask=m_tile, other=0.0).to(tl.float32) + b_added
    tl.store(p_row, b_out.to(p_out.dtype.element_ty), mask=m_tile)


def lora_rows(adapter_ids: torch.Tensor, num_adapters: int) -> LoraRows:
    """adapter_ids: [num_tokens] int64, at least one, below num_adapters or NO_ADAPTER; read on the device alone."""
    num_tokens = adapter_ids.shape[0]
    tile = MIN_DOT if num_tokens < 32 * num_adapters else 64
    # what is no adapter's is behind the last, where the sort leaves it out
    known = torch.where(adapter_ids < 0, num_adapters, adapter_ids).unsqueeze(1)
    return LoraRows(num_tokens=num_tokens, tiles=align(known, num_adapters, tile))


def add_lora(out: torch.Tensor, x: torch.Tensor, weights: LoraWeights, rows: LoraRows) -> None:
    """Adds to out: [num_tokens, out] in place; x: [num_tokens, in]. Rows without an adapter are not touched."""
    check_lora(out, x, weights, rows.num_tokens)
    tiles = rows.tiles
    part = _PART if tiles.tile == MIN_DOT else weights.in_features
    num_parts = ceil_div(weights.in_features, part)
    shape = (num_parts, rows.num_tokens, weights.num_slices, weights.max_rank)
    parts = torch.empty(shape, dtype=torch.float32, device=x.device)
    num_tiles = tiles.experts.shape[0]
    shared = {
        "p_parts": parts,
        "p_order": tiles.order,
        "p_adapters": tiles.experts,
        "num_tokens": rows.num_tokens,
        "num_slices": weights.num_slices,
        "RANK": weights.max_rank,
        "TILE": tiles.tile,
        "BLOCK_R": max(next_power_of_2(weights.max_rank), MIN_DOT),
        "PRECISION": dot_precision(x.dtype, lora_shrink_kernel),
        "IS_WIDENED": x.dtype == torch.bfloat16 and is_interpreted(lora_shrink_kernel),
        "num_warps": 4,
    }
    lora_shrink_kernel[(num_tiles, weights.num_slices, num_parts)](
        p_x=x,
        p_a=weights.a,
        stride_x=x.stride(0),
        in_features=weights.in_features,
        part=part,
        BLOCK_K=32 if x.dtype == torch.float32 else 64 if is_amd() else 128,
        num_stages=2 if is_amd() else 3,
        **shared,
    )
    lora_expand_kernel[(num_tiles, weights.num_slices, ceil_div(weights.max_slice, _BLOCK_N))](
        p_b=weights.b,
        p_scales=weights.scales,
        p_out=out,
        p_slice_starts=weights.slice_starts,
        stride_out=out.stride(0),
        out_features=weights.out_features,
        num_parts=num_parts,
        BLOCK_N=_BLOCK_N,
        **shared,
    )
