"""Reference of `lora.py`: out[t] += scale * B (A x[t]) of each row's adapter, slice by slice.

Hu et al., "LoRA", 2021. scale * A x is rounded to the dtype of x, as it would be between two linear layers.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from octavo_kernels.lora_weights import LoraWeights, check_lora


def add_lora(out: torch.Tensor, x: torch.Tensor, weights: LoraWeights, adapter_ids: torch.Tensor) -> None:
    """Adds to out: [num_tokens, out] in place; x: [num_tokens, in]; adapter_ids: [num_tokens] int64 or NO_ADAPTER."""
    check_lora(out, x, weights, adapter_ids.shape[0])
    for row, adapter in enumerate(adapter_ids.tolist()):
        if adapter < 0:
            continue
        for i, (start, end) in enumerate(pairwise(weights.slice_starts.tolist())):
            low = weights.scales[adapter] * (weights.a[adapter, i].float() @ x[row].float())
            added = weights.b[adapter, start:end].float() @ low.to(x.dtype).float()
            out[row, start:end] = (out[row, start:end].float() + added).to(out.dtype)
