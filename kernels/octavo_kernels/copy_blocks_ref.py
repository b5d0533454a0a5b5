"""Reference of `copy_blocks.py`: whole blocks of the paged cache, in all layers."""

from __future__ import annotations

import torch

from octavo_kernels.attention_checks import check_copy_blocks


def copy_blocks(keys: torch.Tensor, values: torch.Tensor, source: torch.Tensor, destination: torch.Tensor) -> None:
    """Copies blocks source[i] to destination[i] in place; the two sets are disjoint.

    keys, values: [num_layers, num_blocks, num_kv_heads, block_size, head_dim]; source, destination: [n] int64.
    """
    check_copy_blocks(source, destination, keys.device)
    keys[:, destination] = keys[:, source]
    values[:, destination] = values[:, source]
