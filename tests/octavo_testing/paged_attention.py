"""Ways to compute a paged case's attention: by the references, by our kernels, by the torch backend."""

from __future__ import annotations

import torch

from octavo_kernels import decode_attention, decode_attention_ref, extend_attention, extend_attention_ref
from octavo_kernels.attention_plan import PagedAttentionPlan, plan_paged_attention
from octavo_kernels.attention_variant import PLAIN, AttentionVariant
from octavo_kernels.extend_attention import extend_tiling
from octavo_kernels.handles import KVCacheSpec, KVScales
from octavo_kernels.torch_backend import TorchBackend
from octavo_testing.kernels import PagedCase

TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""16 bits: weights are rounded to them before they meet V."""

MIXED = ([1, 7, 1, 40, 1], [33, 7, 1, 81, 190])
"""Query lengths and contexts: decodes around extends, with and without a prefix, over block and tile edges."""


def a_plan(
    case: PagedCase, *, target_items: int = 16, query_tile: int | None = None, window: int | None = None
) -> PagedAttentionPlan:
    num_heads, head_dim = case.q.shape[1:]
    num_kv_heads = case.key_cache.shape[1]
    # codes are dealt as 16 bits are
    dtype = case.key_cache.dtype
    return plan_paged_attention(
        case.batch,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        query_tile=query_tile or extend_tiling(num_heads // num_kv_heads, head_dim, dtype).query_tile,
        target_items=target_items,
        window=window,
    )


def by_reference(
    case: PagedCase, window: int | None = None, variant: AttentionVariant = PLAIN, scales: KVScales | None = None
) -> torch.Tensor:
    out = torch.full_like(case.q, torch.nan)
    plan = a_plan(case, window=window)
    for attend in (decode_attention_ref.decode_attention, extend_attention_ref.extend_attention):
        attend(case.q, case.key_cache, case.value_cache, plan, case.scale, out, variant, scales)
    return out


def by_triton(
    case: PagedCase, variant: AttentionVariant = PLAIN, scales: KVScales | None = None, **how: int | None
) -> torch.Tensor:
    out = torch.full_like(case.q, torch.nan)
    plan = a_plan(case, **how)
    for attend in (decode_attention.decode_attention, extend_attention.extend_attention):
        attend(case.q, case.key_cache, case.value_cache, plan, case.scale, out, variant, scales)
    return out


def by_torch(case: PagedCase, window: int | None = None, variant: AttentionVariant = PLAIN) -> torch.Tensor:
    backend = TorchBackend(torch.device("cpu"))
    num_blocks, num_kv_heads, block_size, head_dim = case.key_cache.shape
    cache = backend.allocate_kv_cache(
        KVCacheSpec(
            num_layers=1,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            dtype=case.q.dtype,
        )
    )
    cache.keys[0].copy_(case.key_cache)
    cache.values[0].copy_(case.value_cache)
    plan = backend.plan_attention(case.batch, cache, case.q.shape[1], window)
    return backend.attention(case.q, cache, 0, plan, case.scale, variant)
