"""What each operation requires of its tensors, said once for the kernels, the references and the fast CPU paths.

A broken requirement is a `KernelError` that names the tensor, what was given and what is needed. Values inside tensors
(a slot past the cache, a wrong length) are never looked at: that would make the host wait for the device.
"""

from __future__ import annotations

from typing import TypeVar

import torch

from octavo_kernels.batches import AttentionBatch, SamplingBatch
from octavo_kernels.errors import KernelError
from octavo_kernels.handles import KVCacheSpec

_Handle = TypeVar("_Handle")

FLOATING = (torch.float32, torch.bfloat16, torch.float16)


def check_cache_spec(spec: KVCacheSpec) -> None:
    for name in ("num_layers", "num_blocks", "block_size", "num_kv_heads", "head_dim"):
        if getattr(spec, name) < 1:
            raise KernelError(f"KV cache {name} is {getattr(spec, name)}, must be at least 1")
    _require_floating("KV cache", spec.dtype)


def check_linear_weight(weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """weight: [out, in], bias: [out], same floating dtype."""
    _require_rank("weight", weight, 2)
    _require_floating("weight", weight.dtype)
    if bias is not None:
        _require_shape("bias", bias, (weight.shape[0],))
        _require_dtype("bias", bias, weight.dtype)


def check_linear(x: torch.Tensor, weight: torch.Tensor) -> None:
    """x: [num_tokens, in] of the weight's dtype, on its device."""
    _require_rank("x", x, 2)
    if x.shape[1] != weight.shape[1]:
        raise KernelError(f"x has {x.shape[1]} features, the linear layer takes {weight.shape[1]}")
    _require_dtype("x", x, weight.dtype)
    _require_device("x", x, weight.device)


def check_rms_norm(x: torch.Tensor, weight: torch.Tensor) -> None:
    """x: [..., hidden] of rank 1 to 3, last dimension contiguous; weight: [hidden] contiguous; any floating dtypes."""
    if not 1 <= x.ndim <= 3:
        raise KernelError(f"x has shape {list(x.shape)}, rms_norm takes 1 to 3 dimensions")
    _require_floating("x", x.dtype)
    _require_floating("weight", weight.dtype)
    _require_shape("weight", weight, (x.shape[-1],))
    _require_last_contiguous("x", x)
    _require_last_contiguous("weight", weight)
    _require_device("weight", weight, x.device)


def check_add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> None:
    """x, residual: [num_tokens, hidden] of one dtype; weight: [hidden]."""
    _require_rank("x", x, 2)
    check_rms_norm(x, weight)
    _require_shape("residual", residual, tuple(x.shape))
    _require_dtype("residual", residual, x.dtype)
    _require_last_contiguous("residual", residual)
    _require_device("residual", residual, x.device)


def check_rotary(q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> None:
    """See `KernelBackend.rotary`."""
    _require_rank("q", q, 3)
    _require_floating("q", q.dtype)
    _require_shape("k", k, (q.shape[0], None, q.shape[2]))
    _require_dtype("k", k, q.dtype)
    _require_last_contiguous("q", q)
    _require_last_contiguous("k", k)
    _require_rank("cos_sin", cos_sin, 2)
    _require_dtype("cos_sin", cos_sin, torch.float32)
    _require_last_contiguous("cos_sin", cos_sin)
    rotary_dim = cos_sin.shape[1]
    if rotary_dim % 2 or not 0 < rotary_dim <= q.shape[2]:
        raise KernelError(f"cos_sin has {rotary_dim} columns, must be even and at most head_dim {q.shape[2]}")
    _require_shape("positions", positions, (q.shape[0],))
    _require_dtype("positions", positions, torch.int64)
    for name, tensor in (("k", k), ("cos_sin", cos_sin), ("positions", positions)):
        _require_device(name, tensor, q.device)


def check_store_kv(
    k: torch.Tensor, v: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, slot_mapping: torch.Tensor
) -> None:
    """k, v: [num_tokens, num_kv_heads, head_dim] of the cache's dtype, last dimension contiguous."""
    check_caches(key_cache, value_cache)
    for name, tensor in (("k", k), ("v", v)):
        _require_shape(name, tensor, (slot_mapping.shape[0], key_cache.shape[1], key_cache.shape[3]))
        _require_dtype(name, tensor, key_cache.dtype)
        _require_last_contiguous(name, tensor)
        _require_device(name, tensor, key_cache.device)
    _require_rank("slot_mapping", slot_mapping, 1)
    _require_dtype("slot_mapping", slot_mapping, torch.int64)
    _require_device("slot_mapping", slot_mapping, key_cache.device)


def check_caches(key_cache: torch.Tensor, value_cache: torch.Tensor) -> None:
    """Both [num_blocks, num_kv_heads, block_size, head_dim], one floating dtype, last dimension contiguous."""
    _require_rank("key_cache", key_cache, 4)
    _require_floating("key_cache", key_cache.dtype)
    _require_shape("value_cache", value_cache, tuple(key_cache.shape))
    _require_dtype("value_cache", value_cache, key_cache.dtype)
    _require_last_contiguous("key_cache", key_cache)
    _require_last_contiguous("value_cache", value_cache)


def check_attention_batch(batch: AttentionBatch) -> None:
    """See `AttentionBatch`; shapes and dtypes alone, the values stay on the device."""
    num_seqs = batch.seq_lens.shape[0] if batch.seq_lens.ndim == 1 else -1
    if num_seqs < 1:
        raise KernelError(f"seq_lens has shape {list(batch.seq_lens.shape)}, must be [num_seqs] with at least 1")
    _require_shape("query_start_loc", batch.query_start_loc, (num_seqs + 1,))
    _require_shape("block_tables", batch.block_tables, (num_seqs, None))
    _require_rank("slot_mapping", batch.slot_mapping, 1)
    for name in ("query_start_loc", "seq_lens", "block_tables"):
        _require_dtype(name, getattr(batch, name), torch.int32)
        _require_last_contiguous(name, getattr(batch, name))
        _require_device(name, getattr(batch, name), batch.seq_lens.device)
    _require_dtype("slot_mapping", batch.slot_mapping, torch.int64)
    if not 1 <= batch.max_query_len <= batch.max_seq_len:
        raise KernelError(
            f"max_query_len {batch.max_query_len} must be between 1 and max_seq_len, which is {batch.max_seq_len}"
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


def check_attention(q: torch.Tensor, key_cache: torch.Tensor, num_tokens: int, num_heads: int) -> None:
    """q: [num_tokens, num_heads, head_dim] of the cache's dtype, last dimension contiguous."""
    _require_shape("q", q, (num_tokens, num_heads, key_cache.shape[-1]))
    _require_dtype("q", q, key_cache.dtype)
    _require_last_contiguous("q", q)
    _require_device("q", q, key_cache.device)


def check_silu_and_mul(x: torch.Tensor) -> None:
    """x: [num_tokens, 2 * d], last dimension contiguous."""
    _require_rank("x", x, 2)
    _require_floating("x", x.dtype)
    _require_last_contiguous("x", x)
    if x.shape[1] % 2:
        raise KernelError(f"x has {x.shape[1]} columns, silu_and_mul needs an even number: gate beside up")


def check_route(logits: torch.Tensor, num_chosen: int) -> None:
    """logits: [num_tokens, num_experts] float32, last dimension contiguous."""
    _require_rank("logits", logits, 2)
    _require_dtype("logits", logits, torch.float32)
    _require_last_contiguous("logits", logits)
    if not 1 <= num_chosen <= logits.shape[1]:
        raise KernelError(f"num_chosen is {num_chosen}, must be between 1 and the {logits.shape[1]} experts")


def check_expert_weights(gate_up: torch.Tensor, down: torch.Tensor) -> None:
    """gate_up: [num_experts, 2 * inner, hidden], down: [num_experts, hidden, inner], same floating dtype."""
    _require_rank("gate_up", gate_up, 3)
    _require_floating("gate_up", gate_up.dtype)
    num_experts, num_rows, hidden = gate_up.shape
    if num_experts == 0 or num_rows % 2:
        raise KernelError(
            f"gate_up has shape {list(gate_up.shape)}, must be [1 or more experts, an even number: gate before up, any]"
        )
    _require_shape("down", down, (num_experts, hidden, num_rows // 2))
    _require_dtype("down", down, gate_up.dtype)


def check_experts(
    x: torch.Tensor, hidden: int, dtype: torch.dtype, expert_ids: torch.Tensor, expert_weights: torch.Tensor
) -> None:
    """x: [num_tokens, hidden] of the weights' dtype, last dimension contiguous; the others: see `KernelBackend.experts`."""
    _require_shape("x", x, (None, hidden))
    _require_dtype("x", x, dtype)
    _require_last_contiguous("x", x)
    _require_shape("expert_ids", expert_ids, (x.shape[0], None))
    _require_dtype("expert_ids", expert_ids, torch.int64)
    _require_shape("expert_weights", expert_weights, tuple(expert_ids.shape))
    _require_dtype("expert_weights", expert_weights, torch.float32)
    for name, tensor in (("expert_ids", expert_ids), ("expert_weights", expert_weights)):
        _require_device(name, tensor, x.device)


_SAMPLING_DTYPES = {
    "temperature": torch.float32,
    "top_k": torch.int32,
    "top_p": torch.float32,
    "min_p": torch.float32,
    "seed": torch.int64,
    "position": torch.int64,
}


def check_sample(logits: torch.Tensor, params: SamplingBatch) -> None:
    """logits: [num_rows, vocab] float32, last dimension contiguous; params: see `SamplingBatch`."""
    _require_rank("logits", logits, 2)
    _require_dtype("logits", logits, torch.float32)
    _require_last_contiguous("logits", logits)
    if logits.shape[1] == 0:
        raise KernelError("logits has 0 columns, needs at least one token to choose")
    for name, dtype in _SAMPLING_DTYPES.items():
        tensor: torch.Tensor = getattr(params, name)
        _require_shape(name, tensor, (logits.shape[0],))
        _require_dtype(name, tensor, dtype)
        _require_last_contiguous(name, tensor)
        _require_device(name, tensor, logits.device)


def check_copy_blocks(source: torch.Tensor, destination: torch.Tensor, device: torch.device) -> None:
    """source, destination: [n] int64."""
    _require_rank("source", source, 1)
    _require_shape("destination", destination, tuple(source.shape))
    for name, tensor in (("source", source), ("destination", destination)):
        _require_dtype(name, tensor, torch.int64)
        _require_device(name, tensor, device)


def require_own(handle: object, kind: type[_Handle]) -> _Handle:
    """A handle that this backend made itself; another's would be read as garbage."""
    if not isinstance(handle, kind):
        raise KernelError(f"handle is a {type(handle).__name__}, this backend reads its own {kind.__name__} only")
    return handle


def require_float32(name: str, tensor: torch.Tensor) -> None:
    """A float32 tensor on the CPU, for kernels that know nothing else."""
    _require_dtype(name, tensor, torch.float32)
    _require_device(name, tensor, torch.device("cpu"))


def require_shape(name: str, tensor: torch.Tensor, shape: tuple[int | None, ...]) -> None:
    """None stands for any size."""
    _require_shape(name, tensor, shape)


def check_layer(layer: int, num_layers: int) -> None:
    if not 0 <= layer < num_layers:
        raise KernelError(f"layer {layer} is not in the cache, which has {num_layers}")


def _require_rank(name: str, tensor: torch.Tensor, rank: int) -> None:
    if tensor.ndim != rank:
        raise KernelError(f"{name} has shape {list(tensor.shape)}, must have {rank} dimensions")


def _require_shape(name: str, tensor: torch.Tensor, shape: tuple[int | None, ...]) -> None:
    """None stands for any size."""
    if tensor.ndim != len(shape) or any(w is not None and w != s for s, w in zip(tensor.shape, shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise KernelError(f"{name} has shape {list(tensor.shape)}, must be [{wanted}]")


def _require_dtype(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise KernelError(f"{name} is {tensor.dtype}, must be {dtype}")


def _require_floating(name: str, dtype: torch.dtype) -> None:
    if dtype not in FLOATING:
        raise KernelError(f"{name} is {dtype}, must be one of {', '.join(str(d) for d in FLOATING)}")


def _require_last_contiguous(name: str, tensor: torch.Tensor) -> None:
    if tensor.stride(-1) != 1 and tensor.shape[-1] != 1:
        raise KernelError(f"{name} has stride {tensor.stride(-1)} in its last dimension, must be 1 (contiguous)")


def _require_device(name: str, tensor: torch.Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise KernelError(f"{name} is on {tensor.device}, must be on {device}")
