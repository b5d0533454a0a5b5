"""Reference of `rms_norm.py`: x / sqrt(mean(x^2) + eps) * weight, in float32, rounded once at the end."""

from __future__ import annotations

import torch

from octavo_kernels.checks import check_add_rms_norm, check_rms_norm


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x: [..., hidden], weight: [hidden] -> new tensor, shape and dtype of x."""
    check_rms_norm(x, weight)
    wide = x.float()
    inverse_rms = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * inverse_rms * weight.float()).to(x.dtype)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Adds x to residual in place, rounded to its dtype; -> rms_norm of it. Both [num_tokens, hidden]."""
    check_add_rms_norm(x, residual, weight)
    residual += x
    return rms_norm(residual, weight, eps)
