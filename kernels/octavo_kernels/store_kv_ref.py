"""Reference of `store_kv.py`: keys and values of new tokens into their slots of the paged cache."""

from __future__ import annotations

import torch

from octavo_kernels.attention_checks import check_store_kv
from octavo_kernels.batches import PAD_SLOT
from octavo_kernels.handles import KVScales


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
    if scales is not None:
        k, v = _codes(k, scales.keys), _codes(v, scales.values)
    block_size = key_cache.shape[2]
    for row, slot in enumerate(slot_mapping.tolist()):
        if slot == PAD_SLOT:
            continue
        key_cache[slot // block_size, :, slot % block_size] = k[row]
        value_cache[slot // block_size, :, slot % block_size] = v[row]


def _codes(x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x: [num_tokens, num_kv_heads, head_dim] -> like it, uint8."""
    scaled = (x.float() / scales[:, None]).clamp(-448, 448).nan_to_num(nan=448)
    return scaled.to(torch.float8_e4m3fn).view(torch.uint8)
