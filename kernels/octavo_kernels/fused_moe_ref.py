"""Reference of `fused_moe.py`: each token through each of its experts, one at a time, in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from octavo_kernels.checks import check_expert_weights, check_experts


def fused_moe(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, expert_ids: torch.Tensor, expert_weights: torch.Tensor
) -> torch.Tensor:
    """See `KernelBackend.experts`; silu(gate) * up is rounded to the dtype of x, as it stands in memory."""
    check_expert_weights(gate_up, down)
    check_experts(x, gate_up.shape[2], gate_up.dtype, expert_ids, expert_weights)
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for token, experts in enumerate(expert_ids.tolist()):
        for slot, expert in enumerate(experts):
            gate, up = (gate_up[expert].float() @ x[token].float()).chunk(2)
            inner = (F.silu(gate) * up).to(x.dtype).float()
            out[token] += expert_weights[token, slot] * (down[expert].float() @ inner)
    return out.to(x.dtype)
