"""Reference of `moe_routing.py`: the experts of the largest softmax, in float32; a stable sort leaves ties in order."""

from __future__ import annotations

import torch

from octavo_kernels.checks import check_route


def route(logits: torch.Tensor, num_chosen: int, *, renormalizes: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """logits: [num_tokens, num_experts] float32 -> ids int64 and shares float32, both [num_tokens, num_chosen]."""
    check_route(logits, num_chosen)
    shares, ids = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True, stable=True)
    shares, ids = shares[:, :num_chosen].contiguous(), ids[:, :num_chosen].contiguous()
    return ids, shares / shares.sum(dim=-1, keepdim=True) if renormalizes else shares
