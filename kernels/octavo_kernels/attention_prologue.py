"""All that lies between the projection of q, k and v and attention, in one launch.

    q, k = rms_norm(q), rms_norm(k)     where the family has it, rounded to their dtype
    q, k = rotary(q), rotary(k)         halves layout, rotary.py
    cache[slot] = k, v                  store_kv.py

A program takes some heads of one token, of q, of k or of v. The other half of a rotated pair is read a second time, from
the nearest cache, and normed again: cheaper than exchanging it between threads. qkv is not written, so no program waits
for another.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo_kernels.attention_checks import check_attention_prologue
from octavo_kernels.fp8_codes import encode_fp8
from octavo_kernels.handles import KVScales, QKNorm
from octavo_kernels.launch import ceil_div, next_power_of_2
from octavo_kernels.overlap import await_inputs, overlapped

_HEADS = 8
"""Heads of a program: few, so that a decode of one token has several programs."""


@triton.jit
def attention_prologue_kernel(
    p_qkv,
    p_q_norm,
    p_k_norm,
    p_cos_sin,
    p_positions,
    p_out,
    p_key_cache,
    p_value_cache,
    p_slot_mapping,
    stride_token,
    stride_head,
    stride_cos_sin,
    stride_key_block,
    stride_key_head,
    stride_key_slot,
    stride_value_block,
    stride_value_head,
    stride_value_slot,
    num_heads,
    num_kv_heads,
    num_q_tiles,
    num_kv_tiles,
    block_size,
    half,
    eps,
    p_key_scales,
    p_value_scales,
    HAS_NORM: tl.constexpr,
    IS_FP8: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    HEADS: tl.constexpr,
    IS_OVERLAPPED: tl.constexpr,
):
    await_inputs(IS_OVERLAPPED)
    i_token = tl.program_id(0).to(tl.int64)
    i_tile = tl.program_id(1)
    o_dim = tl.arange(0, BLOCK_DIM)[None, :]
    m_dim = o_dim < HEAD_DIM
    p_token = p_qkv + i_token * stride_token
    if i_tile < num_q_tiles:
        o_head = (i_tile * HEADS + tl.arange(0, HEADS))[:, None].to(tl.int64)
        m_tile = (o_head < num_heads) & m_dim
        p_angle = p_cos_sin + tl.load(p_positions + i_token) * stride_cos_sin
        # b_q: [HEADS, BLOCK_DIM], dtype of qkv
        b_q = _turned(p_token + o_head * stride_head, p_q_norm, p_angle, o_dim, m_tile, half, eps, HAS_NORM, HEAD_DIM)
        tl.store(p_out + (i_token * num_heads + o_head) * HEAD_DIM + o_dim, b_q, mask=m_tile)
        return
    slot = tl.load(p_slot_mapping + i_token)
    # PAD_SLOT goes nowhere
    if slot < 0:
        return
    i_block = slot // block_size
    i_slot = slot % block_size
    i_kv_tile = i_tile - num_q_tiles
    o_head = (i_kv_tile % num_kv_tiles * HEADS + tl.arange(0, HEADS))[:, None].to(tl.int64)
    m_tile = (o_head < num_kv_heads) & m_dim
    if i_kv_tile < num_kv_tiles:
        p_angle = p_cos_sin + tl.load(p_positions + i_token) * stride_cos_sin
        p_head = p_token + (num_heads + o_head) * stride_head
        b_k = _turned(p_head, p_k_norm, p_angle, o_dim, m_tile, half, eps, HAS_NORM, HEAD_DIM)
        if IS_FP8:
            b_scale = tl.load(p_key_scales + o_head, mask=o_head < num_kv_heads, other=1.0)
            b_k = encode_fp8(b_k.to(tl.float32) / b_scale)
        p_key = p_key_cache + i_block * stride_key_block + o_head * stride_key_head + i_slot * stride_key_slot
        tl.store(p_key + o_dim, b_k, mask=m_tile)
    else:
        b_v = tl.load(p_token + (num_heads + num_kv_heads + o_head) * stride_head + o_dim, mask=m_tile)
        if IS_FP8:
            b_scale = tl.load(p_value_scales + o_head, mask=o_head < num_kv_heads, other=1.0)
            b_v = encode_fp8(b_v.to(tl.float32) / b_scale)
        p_value = p_value_cache + i_block * stride_value_block + o_head * stride_value_head + i_slot * stride_value_slot
        tl.store(p_value + o_dim, b_v, mask=m_tile)


@triton.jit
def _turned(p_head, p_norm, p_angle, o_dim, m_tile, half, eps, HAS_NORM: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Heads normed and turned: [HEADS, BLOCK_DIM], their dtype."""
    is_low = o_dim < half
    is_turned = o_dim < 2 * half
    o_other = tl.where(is_low, o_dim + half, o_dim - half)
    # b_x, b_other: [HEADS, BLOCK_DIM] fp32, each element and the one that it turns with
    b_x = tl.load(p_head + o_dim, mask=m_tile, other=0.0).to(tl.float32)
    b_other = tl.load(p_head + o_other, mask=m_tile & is_turned, other=0.0).to(tl.float32)
    if HAS_NORM:
        inverse_rms = (1.0 / tl.sqrt(tl.sum(b_x * b_x, axis=1) / HEAD_DIM + eps))[:, None]
        m_dim = o_dim < HEAD_DIM
        b_weight = tl.load(p_norm + o_dim, mask=m_dim, other=0.0).to(tl.float32)
        b_other_weight = tl.load(p_norm + o_other, mask=is_turned, other=0.0).to(tl.float32)
        b_x = (b_x * inverse_rms * b_weight).to(p_head.dtype.element_ty).to(tl.float32)
        b_other = (b_other * inverse_rms * b_other_weight).to(p_head.dtype.element_ty).to(tl.float32)
    # b_cos, b_sin: [1, BLOCK_DIM] fp32
    o_pair = tl.where(is_low, o_dim, o_dim - half)
    b_cos = tl.load(p_angle + o_pair, mask=is_turned, other=1.0)
    b_sin = tl.load(p_angle + half + o_pair, mask=is_turned, other=0.0)
    b_turned = b_x * b_cos + b_other * tl.where(is_low, -b_sin, b_sin)
    return tl.where(is_turned, b_turned, b_x).to(p_head.dtype.element_ty)


def attention_prologue(
    qkv: torch.Tensor,
    norm: QKNorm | None,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    scales: KVScales | None = None,
) -> torch.Tensor:
    """Writes K and V of qkv into the caches; -> q as attention takes it, new [num_tokens, num_heads, head_dim].

    qkv: [num_tokens, num_heads + 2 * num_kv_heads, head_dim], q's heads, then k's, then v's; not written.
    Caches: [num_blocks, num_kv_heads, block_size, head_dim]. cos_sin, positions: see `KernelBackend.rotary`. scales: as in `store_kv`.
    """
    check_attention_prologue(qkv, norm, cos_sin, positions, key_cache, value_cache, slot_mapping, scales)
    _, num_kv_heads, block_size, head_dim = key_cache.shape
    num_tokens, num_heads = qkv.shape[0], qkv.shape[1] - 2 * num_kv_heads
    out = torch.empty((num_tokens, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    if num_tokens == 0:
        return out
    num_q_tiles, num_kv_tiles = ceil_div(num_heads, _HEADS), ceil_div(num_kv_heads, _HEADS)
    attention_prologue_kernel[(num_tokens, num_q_tiles + 2 * num_kv_tiles)](
        p_qkv=qkv,
        p_q_norm=norm.q if norm is not None else None,
        p_k_norm=norm.k if norm is not None else None,
        p_cos_sin=cos_sin,
        p_positions=positions,
        p_out=out,
        p_key_cache=key_cache,
        p_value_cache=value_cache,
        p_slot_mapping=slot_mapping,
        stride_token=qkv.stride(0),
        stride_head=qkv.stride(1),
        stride_cos_sin=cos_sin.stride(0),
        stride_key_block=key_cache.stride(0),
        stride_key_head=key_cache.stride(1),
        stride_key_slot=key_cache.stride(2),
        stride_value_block=value_cache.stride(0),
        stride_value_head=value_cache.stride(1),
        stride_value_slot=value_cache.stride(2),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        num_q_tiles=num_q_tiles,
        num_kv_tiles=num_kv_tiles,
        block_size=block_size,
        half=cos_sin.shape[1] // 2,
        eps=norm.eps if norm is not None else 0.0,
        p_key_scales=scales.keys if scales is not None else None,
        p_value_scales=scales.values if scales is not None else None,
        HAS_NORM=norm is not None,
        IS_FP8=scales is not None,
        HEAD_DIM=head_dim,
        BLOCK_DIM=next_power_of_2(head_dim),
        HEADS=_HEADS,
        num_warps=4,
        **overlapped(),
    )
    return out
