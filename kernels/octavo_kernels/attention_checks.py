"""What attention and the KV cache require of their tensors, said once as in checks.py."""

from __future__ import annotations

import torch

from octavo_kernels.attention_variant import AttentionVariant
from octavo_kernels.batches import AttentionBatch
from octavo_kernels.checks import check_angles, check_rms_norm
from octavo_kernels.errors import KernelError
from octavo_kernels.fp8_weight import FP8
from octavo_kernels.handles import KVCacheSpec, KVScales, QKNorm
from octavo_kernels.require import (
    require_device,
    require_dtype,
    require_floating,
    require_last_contiguous,
    require_rank,
    require_shape,
)


def check_cache_spec(spec: KVCacheSpec, scales: KVScales | None = None) -> None:
    for name in ("num_layers", "num_blocks", "block_size", "num_kv_heads", "head_dim"):
        if getattr(spec, name) < 1:
            raise KernelError(f"KV cache {name} is {getattr(spec, name)}, must be at least 1")
    if spec.dtype != FP8:
        require_floating("KV cache", spec.dtype)
        if scales is not None:
            raise KernelError(f"KV cache is {spec.dtype}, which takes no scales; give them to one of {FP8}")
    elif scales is not None:
        for name, tensor in (("scales.keys", scales.keys), ("scales.values", scales.values)):
            require_shape(name, tensor, (spec.num_layers, spec.num_kv_heads))
            require_dtype(name, tensor, torch.float32)


def check_copy_blocks(source: torch.Tensor, destination: torch.Tensor, device: torch.device) -> None:
    """source, destination: [n] int64."""
    require_rank("source", source, 1)
    require_shape("destination", destination, tuple(source.shape))
    for name, tensor in (("source", source), ("destination", destination)):
        require_dtype(name, tensor, torch.int64)
        require_device(name, tensor, device)


def check_layer(layer: int, num_layers: int) -> None:
    if not 0 <= layer < num_layers:
        raise KernelError(f"layer {layer} is not in the cache, which has {num_layers}")


def check_store_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    scales: KVScales | None = None,
) -> None:
    """k, v: [num_tokens, num_kv_heads, head_dim] of the cache's dtype, or any floating one where there are scales."""
    check_caches(key_cache, value_cache, scales)
    for name, tensor in (("k", k), ("v", v)):
        require_shape(name, tensor, (slot_mapping.shape[0], key_cache.shape[1], key_cache.shape[3]))
        _require_dtype_of_cache(name, tensor, key_cache, scales)
        require_last_contiguous(name, tensor)
        require_device(name, tensor, key_cache.device)
    check_slots(slot_mapping, key_cache.device)


def check_attention_prologue(
    qkv: torch.Tensor,
    norm: QKNorm | None,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    scales: KVScales | None = None,
) -> None:
    """qkv: [num_tokens, num_heads + 2 * num_kv_heads, head_dim] of the cache's dtype; others as for its parts."""
    check_caches(key_cache, value_cache, scales)
    num_kv_heads = key_cache.shape[1]
    require_shape("qkv", qkv, (slot_mapping.shape[0], None, key_cache.shape[3]))
    check_num_heads(qkv.shape[1] - 2 * num_kv_heads, num_kv_heads)
    require_floating("qkv", qkv.dtype)
    _require_dtype_of_cache("qkv", qkv, key_cache, scales)
    require_last_contiguous("qkv", qkv)
    require_device("qkv", qkv, key_cache.device)
    check_angles(cos_sin, positions, qkv)
    check_slots(slot_mapping, key_cache.device)
    if norm is not None:
        check_rms_norm(qkv, norm.q)
        check_rms_norm(qkv, norm.k)


def check_slots(slot_mapping: torch.Tensor, device: torch.device) -> None:
    """[num_tokens] int64."""
    require_rank("slot_mapping", slot_mapping, 1)
    require_dtype("slot_mapping", slot_mapping, torch.int64)
    require_device("slot_mapping", slot_mapping, device)


def check_caches(key_cache: torch.Tensor, value_cache: torch.Tensor, scales: KVScales | None = None) -> None:
    """Both [num_blocks, num_kv_heads, block_size, head_dim], last dimension contiguous.

    One floating dtype, or uint8 where there are scales: the codes of float8_e4m3fn.
    """
    require_rank("key_cache", key_cache, 4)
    if scales is None:
        require_floating("key_cache", key_cache.dtype)
    else:
        require_dtype("key_cache", key_cache, torch.uint8)
        for name, tensor in (("scales.keys", scales.keys), ("scales.values", scales.values)):
            require_shape(name, tensor, (key_cache.shape[1],))
            require_dtype(name, tensor, torch.float32)
            require_last_contiguous(name, tensor)
            require_device(name, tensor, key_cache.device)
    require_shape("value_cache", value_cache, tuple(key_cache.shape))
    require_dtype("value_cache", value_cache, key_cache.dtype)
    require_last_contiguous("key_cache", key_cache)
    require_last_contiguous("value_cache", value_cache)


def check_attention_batch(batch: AttentionBatch) -> None:
    """See `AttentionBatch`; shapes and dtypes alone, the values stay on the device."""
    num_seqs = batch.seq_lens.shape[0] if batch.seq_lens.ndim == 1 else -1
    if num_seqs < 1:
        raise KernelError(f"seq_lens has shape {list(batch.seq_lens.shape)}, must be [num_seqs] with at least 1")
    require_shape("query_start_loc", batch.query_start_loc, (num_seqs + 1,))
    require_shape("block_tables", batch.block_tables, (num_seqs, None))
    require_rank("slot_mapping", batch.slot_mapping, 1)
    for name in ("query_start_loc", "seq_lens", "block_tables"):
        require_dtype(name, getattr(batch, name), torch.int32)
        require_last_contiguous(name, getattr(batch, name))
        require_device(name, getattr(batch, name), batch.seq_lens.device)
    require_dtype("slot_mapping", batch.slot_mapping, torch.int64)
    if not 1 <= batch.max_query_len <= batch.max_seq_len:
        raise KernelError(
            f"max_query_len {batch.max_query_len} must be between 1 and max_seq_len, which is {batch.max_seq_len}"
        )
    if not 1 <= batch.min_query_len <= batch.max_query_len:
        raise KernelError(
            f"min_query_len {batch.min_query_len} must be between 1 and max_query_len, which is {batch.max_query_len}"
        )


def check_num_heads(num_heads: int, num_kv_heads: int) -> None:
    if num_heads < 1 or num_heads % num_kv_heads:
        raise KernelError(f"{num_heads} query heads are no multiple of {num_kv_heads} key/value heads")


def check_window(window: int | None) -> None:
    if window is not None and window < 1:
        raise KernelError(f"window is {window}, must be at least 1 (a token sees itself), or None")


def check_table_width(batch: AttentionBatch, block_size: int) -> None:
    capacity = batch.block_tables.shape[1] * block_size
    if batch.max_seq_len > capacity:
        raise KernelError(
            f"max_seq_len is {batch.max_seq_len}, but block_tables has {batch.block_tables.shape[1]} blocks of "
            f"{block_size} tokens, which hold {capacity}"
        )


def check_attention(
    q: torch.Tensor, key_cache: torch.Tensor, num_tokens: int, num_heads: int, scales: KVScales | None = None
) -> None:
    """q: [num_tokens, num_heads, head_dim] of the cache's dtype, or any floating one where there are scales."""
    require_shape("q", q, (num_tokens, num_heads, key_cache.shape[-1]))
    _require_dtype_of_cache("q", q, key_cache, scales)
    require_last_contiguous("q", q)
    require_device("q", q, key_cache.device)


def _require_dtype_of_cache(name: str, tensor: torch.Tensor, cache: torch.Tensor, scales: KVScales | None) -> None:
    if scales is None:
        require_dtype(name, tensor, cache.dtype)
    else:
        require_floating(name, tensor.dtype)


def check_mla(q: torch.Tensor, cache: torch.Tensor, num_tokens: int, num_heads: int, out: torch.Tensor) -> None:
    """q: [num_tokens, num_heads, latent + rope], cache: [num_blocks, block_size, latent + rope], out: [.., latent]."""
    require_rank("cache", cache, 3)
    require_floating("cache", cache.dtype)
    require_shape("q", q, (num_tokens, num_heads, cache.shape[2]))
    require_shape("out", out, (num_tokens, num_heads, None))
    if not 0 < out.shape[2] < cache.shape[2]:
        raise KernelError(
            f"out has {out.shape[2]} latent dimensions, must be 1 to {cache.shape[2] - 1}: the rest is rope"
        )
    for name, tensor in (("q", q), ("cache", cache), ("out", out)):
        require_dtype(name, tensor, cache.dtype)
        require_last_contiguous(name, tensor)
        require_device(name, tensor, cache.device)


def check_scale(scale: float) -> None:
    """Kernels take the largest score before it is multiplied."""
    if not scale > 0:
        raise KernelError(f"scale is {scale}, must be above 0")


def check_variant(variant: AttentionVariant, num_heads: int, device: torch.device) -> None:
    """See `AttentionVariant`."""
    if variant.soft_cap is not None and not variant.soft_cap > 0:
        raise KernelError(f"soft_cap is {variant.soft_cap}, must be above 0, or None")
    for name in ("alibi_slopes", "sinks"):
        tensor = getattr(variant, name)
        if tensor is not None:
            require_shape(name, tensor, (num_heads,))
            require_dtype(name, tensor, torch.float32)
            require_last_contiguous(name, tensor)
            require_device(name, tensor, device)
