"""Reference of `attention_prologue.py`: norm of q and k, rotary embedding, K and V into the cache, one after the other."""

from __future__ import annotations

import torch

from octavo_kernels.attention_checks import check_attention_prologue
from octavo_kernels.handles import KVScales, QKNorm
from octavo_kernels.rms_norm_ref import rms_norm
from octavo_kernels.rotary_ref import rotary
from octavo_kernels.store_kv_ref import store_kv


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
    num_kv_heads = key_cache.shape[1]
    q, k, v = qkv[:, : -2 * num_kv_heads], qkv[:, -2 * num_kv_heads : -num_kv_heads], qkv[:, -num_kv_heads:]
    q, k = (q.clone(), k.clone()) if norm is None else (rms_norm(q, norm.q, norm.eps), rms_norm(k, norm.k, norm.eps))
    rotary(q, k, cos_sin, positions)
    store_kv(k, v, key_cache, value_cache, slot_mapping, scales)
    return q
