"""Reference of `store_kv.py`: keys and values of new tokens into their slots of the paged cache."""

from __future__ import annotations

import torch

from octavo_kernels.attention_checks import check_store_kv
from octavo_kernels.batches import PAD_SLOT


def store_kv(
    k: torch.Tensor, v: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, slot_mapping: torch.Tensor
) -> None:
    """Writes k, v: [num_tokens, num_kv_heads, head_dim] into the caches in place.

    Caches: [num_blocks, num_kv_heads, block_size, head_dim]; slot_mapping: [num_tokens] int64, PAD_SLOT goes nowhere.
    """
    check_store_kv(k, v, key_cache, value_cache, slot_mapping)
    block_size = key_cache.shape[2]
    for row, slot in enumerate(slot_mapping.tolist()):
        if slot == PAD_SLOT:
            continue
        key_cache[slot // block_size, :, slot % block_size] = k[row]
        value_cache[slot // block_size, :, slot % block_size] = v[row]
