"""Reference of `invariant_linear.py`: the product and its bias in float32, rounded once."""

from __future__ import annotations

import torch

from octavo_kernels.checks import check_linear, check_linear_weight


def invariant_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x: [num_rows, in], weight: [out, in], bias: [out], one dtype -> new [num_rows, out], dtype of x."""
    check_linear_weight(weight, bias)
    check_linear(x, weight)
    out = x.float() @ weight.float().t()
    return (out if bias is None else out + bias.float()).to(x.dtype)
