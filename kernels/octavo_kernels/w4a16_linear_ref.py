"""Reference of `w4a16_linear.py`: the weight as numbers, rounded to the dtype of x, then torch's product in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo_kernels.checks import check_packed_linear
from octavo_kernels.packed_weight import unpack

if TYPE_CHECKING:
    import torch

    from octavo_kernels.packed_weight import PackedWeight
    from octavo_kernels.split_k import SplitTiling


def w4a16_linear(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, tiling: SplitTiling | None = None
) -> torch.Tensor:
    """x: [num_rows, in], weight: [out, in], bias: [out], dtype of x -> new [num_rows, out]; `tiling` changes nothing here."""
    check_packed_linear(x, weight, bias)
    out = x.float() @ unpack(weight).to(x.dtype).float().t()
    return (out if bias is None else out + bias.float()).to(x.dtype)
