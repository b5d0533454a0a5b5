"""Sorts a step's (token, expert) pairs by expert, each expert's filled up to whole tiles: what grouped products read.

A program an expert. Each counts the pairs of all experts, which tells where its own tiles begin, and then writes its
pairs there in rising order: a counting sort, stable, without atomics, so that the same choice always gives the same
order.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo_kernels.launch import next_power_of_2
from octavo_kernels.moe_tiles import ExpertTiles, max_tiles
from octavo_kernels.overlap import await_inputs, overlapped

_BLOCK = 1024
"""Pairs that a program looks at at once."""


# counts that change from step to step, each of which Triton would compile another kernel for
@triton.jit(do_not_specialize=["num_pairs", "num_tiles"])
def moe_align_kernel(
    p_expert_ids,
    p_order,
    p_experts,
    num_pairs,
    num_experts,
    num_tiles,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    BINS: tl.constexpr,
    IS_OVERLAPPED: tl.constexpr,
):
    await_inputs(IS_OVERLAPPED)
    i_expert = tl.program_id(0)
    o_bin = tl.arange(0, BINS)
    # b_count: [BINS] int32; what is past the last pair falls into bin num_experts
    b_count = tl.zeros([BINS], tl.int32)
    for i_pair in range(0, num_pairs, BLOCK):
        o_pair = i_pair + tl.arange(0, BLOCK)
        b_id = tl.load(p_expert_ids + o_pair, mask=o_pair < num_pairs, other=num_experts).to(tl.int32)
        b_count += tl.histogram(b_id, BINS)
    b_tiles = tl.where(o_bin < num_experts, (b_count + TILE - 1) // TILE, 0)
    first_tile = tl.sum(tl.where(o_bin < i_expert, b_tiles, 0), axis=0)
    last_tile = first_tile + tl.sum(tl.where(o_bin == i_expert, b_tiles, 0), axis=0)

    i_row = first_tile * TILE
    for i_pair in range(0, num_pairs, BLOCK):
        o_pair = i_pair + tl.arange(0, BLOCK)
        b_id = tl.load(p_expert_ids + o_pair, mask=o_pair < num_pairs, other=num_experts).to(tl.int32)
        b_own = (b_id == i_expert).to(tl.int32)
        tl.store(p_order + i_row + tl.cumsum(b_own, axis=0) - 1, o_pair, mask=b_own != 0)
        i_row += tl.sum(b_own, axis=0)
    o_row = i_row + tl.arange(0, TILE)
    tl.store(p_order + o_row, tl.zeros([TILE], tl.int32) + num_pairs, mask=o_row < last_tile * TILE)

    # the last expert also marks what no expert has
    i_mark = last_tile
    if i_expert == num_experts - 1:
        i_mark = num_tiles
    for i_tile in range(first_tile, i_mark, BLOCK):
        o_tile = i_tile + tl.arange(0, BLOCK)
        tl.store(p_experts + o_tile, tl.where(o_tile < last_tile, i_expert, -1), mask=o_tile < i_mark)


def align(expert_ids: torch.Tensor, num_experts: int, tile: int) -> ExpertTiles:
    """expert_ids: [num_tokens, num_chosen] int64, at least one -> the pairs of each expert in tiles of its own."""
    num_pairs = expert_ids.numel()
    num_tiles = max_tiles(num_pairs, num_experts, tile)
    order = torch.empty(num_tiles * tile, dtype=torch.int32, device=expert_ids.device)
    experts = torch.empty(num_tiles, dtype=torch.int32, device=expert_ids.device)
    moe_align_kernel[(num_experts,)](
        p_expert_ids=expert_ids.contiguous(),
        p_order=order,
        p_experts=experts,
        num_pairs=num_pairs,
        num_experts=num_experts,
        num_tiles=num_tiles,
        TILE=tile,
        BLOCK=_BLOCK,
        BINS=next_power_of_2(num_experts + 1),
        num_warps=4,
        **overlapped(),
    )
    return ExpertTiles(tile=tile, order=order, experts=experts)
