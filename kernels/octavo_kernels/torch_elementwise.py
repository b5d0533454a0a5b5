"""The small operations of a layer on a CPU, in as few and as much in-place torch operators as float32 allows.

The references are the meaning, and what other dtypes run. At one token an operator costs its dispatch, a few
microseconds; at many, each new tensor costs page faults: hence in place wherever a tensor is ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from octavo_kernels import rms_norm_ref, rotary_ref, silu_and_mul_ref
from octavo_kernels.checks import check_add_rms_norm, check_rms_norm, check_rotary, check_silu_and_mul


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `KernelBackend.rms_norm`."""
    check_rms_norm(x, weight)
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        return rms_norm_ref.rms_norm(x, weight, eps)
    norm: torch.Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse_rms = norm.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
    return torch.mul(x, inverse_rms).mul_(weight)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `KernelBackend.add_rms_norm`."""
    check_add_rms_norm(x, residual, weight)
    return rms_norm(residual.add_(x), weight, eps)


def rotary(q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> None:
    """See `KernelBackend.rotary`."""
    check_rotary(q, k, cos_sin, positions)
    if q.dtype != torch.float32:
        rotary_ref.rotary(q, k, cos_sin, positions)
        return
    # cos, sin: [num_tokens, 1, rotary_dim / 2] fp32
    cos, sin = cos_sin.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
    for x in _joined(q, k):
        low, high, _ = x.tensor_split((cos.shape[-1], cos_sin.shape[1]), dim=-1)
        turned_in = high * sin
        high.mul_(cos).addcmul_(low, sin)
        low.mul_(cos).sub_(turned_in)


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """See `KernelBackend.silu_and_mul`."""
    check_silu_and_mul(x)
    if x.dtype != torch.float32:
        return silu_and_mul_ref.silu_and_mul(x)
    gate, up = x.chunk(2, dim=1)
    return F.silu(gate).mul_(up)


def _joined(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One view over q's and k's heads when k follows q in memory, as it does in the output of one joint projection."""
    num_tokens, num_heads, head_dim = q.shape
    follows = (
        q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()
        and q.stride() == k.stride()
        and k.storage_offset() == q.storage_offset() + num_heads * q.stride(1)
    )
    if not follows:
        return q, k
    return (q.as_strided((num_tokens, num_heads + k.shape[1], head_dim), q.stride(), q.storage_offset()),)
