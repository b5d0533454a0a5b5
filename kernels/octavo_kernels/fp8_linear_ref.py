"""Reference of `fp8_linear.py`: both operands rounded to float8, then written out and multiplied in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo_kernels.checks import check_fp8_linear
from octavo_kernels.fp8_weight import Fp8Weight, quantize_rows

if TYPE_CHECKING:
    import torch

    from octavo_kernels.split_k import SplitTiling


def fp8_linear(
    x: torch.Tensor, weight: Fp8Weight, bias: torch.Tensor | None, tiling: SplitTiling | None = None
) -> torch.Tensor:
    """x: [num_rows, in] bfloat16, weight: [out, in], bias: [out] -> new [num_rows, out]; `tiling` changes nothing here."""
    check_fp8_linear(x, weight, bias)
    codes, scales = quantize_rows(x)
    out = (codes.float() * scales.unsqueeze(1)) @ (weight.codes.float() * weight.scales.unsqueeze(1)).t()
    return (out if bias is None else out + bias.float()).to(x.dtype)
