"""Reference of `skinny_linear.py`: the product and its bias in float32, rounded once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from octavo_kernels.checks import check_linear, check_linear_weight

if TYPE_CHECKING:
    from octavo_kernels.split_k import SplitTiling


def skinny_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tiling: SplitTiling | None = None
) -> torch.Tensor:
    """x: [num_rows, in], weight: [out, in], bias: [out], one dtype -> new [num_rows, out]; `tiling` changes nothing here."""
    check_linear_weight(weight, bias)
    check_linear(x, weight)
    out = x.float() @ weight.float().t()
    return (out if bias is None else out + bias.float()).to(x.dtype)
