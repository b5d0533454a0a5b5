"""What a backend does between projection and attention that has no launch to save: one operation after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from octavo_kernels.backend import KernelBackend
    from octavo_kernels.handles import KVCache, QKNorm


def composed_prologue(
    backend: KernelBackend,
    qkv: torch.Tensor,
    norm: QKNorm | None,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    stored: tuple[KVCache, int, torch.Tensor],
) -> torch.Tensor:
    """See `KernelBackend.attention_prologue`; q and k are turned where they lie. stored: cache, layer, slot_mapping."""
    cache, layer, slot_mapping = stored
    num_kv_heads = cache.spec.num_kv_heads
    q, k, v = qkv[:, : -2 * num_kv_heads], qkv[:, -2 * num_kv_heads : -num_kv_heads], qkv[:, -num_kv_heads:]
    if norm is not None:
        q, k = backend.rms_norm(q, norm.q, norm.eps), backend.rms_norm(k, norm.k, norm.eps)
    backend.rotary(q, k, cos_sin, positions)
    backend.store_kv(k, v, cache, layer, slot_mapping)
    return q
