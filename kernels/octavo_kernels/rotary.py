"""Rotary position embedding in place, halves layout.

With d = rotary_dim, pair i of a head is (x[i], x[i + d/2]):
    y[i] = x[i] cos - x[i + d/2] sin,  y[i + d/2] = x[i + d/2] cos + x[i] sin
Su et al., "RoFormer", 2021, in the layout of GPT-NeoX. A program turns up to 16 heads of one token, of q or of k.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo_kernels.checks import check_rotary
from octavo_kernels.launch import ceil_div, next_power_of_2

_HEADS = 16


@triton.jit
def rotary_kernel(
    p_q,
    p_k,
    p_cos_sin,
    p_positions,
    stride_q_token,
    stride_q_head,
    stride_k_token,
    stride_k_head,
    stride_cos_sin,
    num_heads,
    num_kv_heads,
    half,
    num_q_tiles,
    HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    i_token = tl.program_id(0).to(tl.int64)
    i_tile = tl.program_id(1)
    o_half = tl.arange(0, BLOCK_HALF)
    m_half = o_half < half
    p_angle = p_cos_sin + tl.load(p_positions + i_token) * stride_cos_sin + o_half
    # b_cos, b_sin: [1, BLOCK_HALF] fp32
    b_cos = tl.load(p_angle, mask=m_half, other=0.0)[None, :]
    b_sin = tl.load(p_angle + half, mask=m_half, other=0.0)[None, :]
    if i_tile < num_q_tiles:
        o_head = i_tile * HEADS + tl.arange(0, HEADS)
        p_low = p_q + i_token * stride_q_token + o_head[:, None] * stride_q_head + o_half[None, :]
        _turn(p_low, b_cos, b_sin, half, (o_head < num_heads)[:, None] & m_half[None, :])
    else:
        o_head = (i_tile - num_q_tiles) * HEADS + tl.arange(0, HEADS)
        p_low = p_k + i_token * stride_k_token + o_head[:, None] * stride_k_head + o_half[None, :]
        _turn(p_low, b_cos, b_sin, half, (o_head < num_kv_heads)[:, None] & m_half[None, :])


@triton.jit
def _turn(p_low, b_cos, b_sin, half, m_pair):
    # b_low, b_high: [HEADS, BLOCK_HALF] fp32
    b_low = tl.load(p_low, mask=m_pair, other=0.0).to(tl.float32)
    b_high = tl.load(p_low + half, mask=m_pair, other=0.0).to(tl.float32)
    tl.store(p_low, (b_low * b_cos - b_high * b_sin).to(p_low.dtype.element_ty), mask=m_pair)
    tl.store(p_low + half, (b_high * b_cos + b_low * b_sin).to(p_low.dtype.element_ty), mask=m_pair)


def rotary(q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> None:
    """Rotates q: [num_tokens, num_heads, head_dim] and k: [num_tokens, num_kv_heads, head_dim] in place.

    cos_sin: [max_positions, rotary_dim] float32, cosines then sines; positions: [num_tokens] int64.
    """
    check_rotary(q, k, cos_sin, positions)
    if q.shape[0] == 0:
        return
    num_q_tiles = ceil_div(q.shape[1], _HEADS)
    half = cos_sin.shape[1] // 2
    rotary_kernel[(q.shape[0], num_q_tiles + ceil_div(k.shape[1], _HEADS))](
        p_q=q,
        p_k=k,
        p_cos_sin=cos_sin,
        p_positions=positions,
        stride_q_token=q.stride(0),
        stride_q_head=q.stride(1),
        stride_k_token=k.stride(0),
        stride_k_head=k.stride(1),
        stride_cos_sin=cos_sin.stride(0),
        num_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        half=half,
        num_q_tiles=num_q_tiles,
        HEADS=_HEADS,
        BLOCK_HALF=next_power_of_2(half),
        num_warps=4,
    )
