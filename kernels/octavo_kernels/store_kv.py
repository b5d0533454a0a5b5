"""Keys and values of new tokens into their slots of the paged cache.

cache[slot // block_size, :, slot % block_size] = row, for K and V. A program stores one token's heads of both.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo_kernels.attention_checks import check_store_kv
from octavo_kernels.fp8_codes import encode_fp8
from octavo_kernels.handles import KVScales
from octavo_kernels.launch import ceil_div, next_power_of_2

_TILE = 4096
"""Elements of K (and of V) that one program holds at most."""


@triton.jit
def store_kv_kernel(
    p_k,
    p_v,
    p_key_cache,
    p_value_cache,
    p_slot_mapping,
    stride_k_token,
    stride_k_head,
    stride_v_token,
    stride_v_head,
    stride_key_block,
    stride_key_head,
    stride_key_slot,
    stride_value_block,
    stride_value_head,
    stride_value_slot,
    num_kv_heads,
    block_size,
    p_key_scales,
    p_value_scales,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    HEADS: tl.constexpr,
    IS_FP8: tl.constexpr,
):
    i_token = tl.program_id(0).to(tl.int64)
    slot = tl.load(p_slot_mapping + i_token)
    # PAD_SLOT goes nowhere
    if slot < 0:
        return
    i_block = slot // block_size
    i_slot = slot % block_size
    o_head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None].to(tl.int64)
    o_dim = tl.arange(0, BLOCK_DIM)[None, :]
    m_tile = (o_head < num_kv_heads) & (o_dim < HEAD_DIM)
    # b_k, b_v: [HEADS, BLOCK_DIM], the cache's dtype
    b_k = tl.load(p_k + i_token * stride_k_token + o_head * stride_k_head + o_dim, mask=m_tile)
    b_v = tl.load(p_v + i_token * stride_v_token + o_head * stride_v_head + o_dim, mask=m_tile)
    if IS_FP8:
        b_k = encode_fp8(b_k.to(tl.float32) / tl.load(p_key_scales + o_head, mask=o_head < num_kv_heads, other=1.0))
        b_v = encode_fp8(b_v.to(tl.float32) / tl.load(p_value_scales + o_head, mask=o_head < num_kv_heads, other=1.0))
    p_key = p_key_cache + i_block * stride_key_block + o_head * stride_key_head + i_slot * stride_key_slot
    p_value = p_value_cache + i_block * stride_value_block + o_head * stride_value_head + i_slot * stride_value_slot
    tl.store(p_key + o_dim, b_k, mask=m_tile)
    tl.store(p_value + o_dim, b_v, mask=m_tile)


def store_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    scales: KVScales | None = None,
) -> None:
    """Writes k, v: [num_tokens, num_kv_heads, head_dim] into the caches in place.

    Caches: [num_blocks, num_kv_heads, block_size, head_dim]; slot_mapping: [num_tokens] int64, PAD_SLOT goes nowhere.
    With scales the caches are uint8, the codes of float8_e4m3fn: of k / scale, at most 448, which NaN becomes too.
    """
    check_store_kv(k, v, key_cache, value_cache, slot_mapping, scales)
    if k.shape[0] == 0:
        return
    num_tokens, num_kv_heads, head_dim = k.shape
    block_dim = next_power_of_2(head_dim)
    heads = min(next_power_of_2(num_kv_heads), max(1, _TILE // block_dim))
    store_kv_kernel[(num_tokens, ceil_div(num_kv_heads, heads))](
        p_k=k,
        p_v=v,
        p_key_cache=key_cache,
        p_value_cache=value_cache,
        p_slot_mapping=slot_mapping,
        stride_k_token=k.stride(0),
        stride_k_head=k.stride(1),
        stride_v_token=v.stride(0),
        stride_v_head=v.stride(1),
        stride_key_block=key_cache.stride(0),
        stride_key_head=key_cache.stride(1),
        stride_key_slot=key_cache.stride(2),
        stride_value_block=value_cache.stride(0),
        stride_value_head=value_cache.stride(1),
        stride_value_slot=value_cache.stride(2),
        num_kv_heads=num_kv_heads,
        block_size=key_cache.shape[2],
        p_key_scales=scales.keys if scales is not None else None,
        p_value_scales=scales.values if scales is not None else None,
        HEAD_DIM=head_dim,
        BLOCK_DIM=block_dim,
        HEADS=heads,
        IS_FP8=scales is not None,
        num_warps=4,
    )
