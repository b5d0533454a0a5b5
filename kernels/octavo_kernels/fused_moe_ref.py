"""Reference of `fused_moe.py`: each token through each of its experts, one at a time, in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from octavo_kernels.checks import check_expert_weights, check_experts
from octavo_kernels.expert_matrices import ExpertMatrices, Fp8Matrices, PackedMatrices, rows_dtype
from octavo_kernels.fp8_weight import quantize_rows


def fused_moe(
    x: torch.Tensor,
    gate_up: ExpertMatrices,
    down: ExpertMatrices,
    expert_ids: torch.Tensor,
    expert_weights: torch.Tensor,
) -> torch.Tensor:
    """See `KernelBackend.experts`; silu(gate) * up is rounded to the dtype of x, as it stands in memory."""
    check_expert_weights(gate_up, down)
    check_experts(x, gate_up.shape[2], rows_dtype(x, gate_up, down), expert_ids, expert_weights)
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    up_numbers, down_numbers = _numbers(gate_up, x.dtype), _numbers(down, x.dtype)
    rows = _rows(x, gate_up)
    for token, experts in enumerate(expert_ids.tolist()):
        for slot, expert in enumerate(experts):
            gate, up = (up_numbers[expert].float() @ rows[token].float()).chunk(2)
            inner = _rows((F.silu(gate) * up).to(x.dtype).unsqueeze(0), down)[0]
            out[token] += expert_weights[token, slot] * (down_numbers[expert].float() @ inner.float())
    return out.to(x.dtype)


def _numbers(matrices: ExpertMatrices, dtype: torch.dtype) -> torch.Tensor:
    """What is multiplied: few bits are rounded to the dtype of x, float8 is not."""
    if isinstance(matrices, PackedMatrices):
        return matrices.numbers().to(dtype)
    return matrices.numbers() if isinstance(matrices, Fp8Matrices) else matrices


def _rows(x: torch.Tensor, matrices: ExpertMatrices) -> torch.Tensor:
    """x: [num_rows, any], as the product sees it: for float8 rounded row by row."""
    if not isinstance(matrices, Fp8Matrices):
        return x
    codes, scales = quantize_rows(x)
    return codes.float() * scales.unsqueeze(1)
