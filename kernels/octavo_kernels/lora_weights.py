"""Low-rank adapters of one linear layer, and which rows of a step belong to which.

A layer that was joined of several (q, k, v; gate, up) has a slice for each: their A differ, and their B stand one above
the other as the layer's own outputs do. Adapters of a smaller rank than the largest are filled up with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo_kernels.errors import KernelError
from octavo_kernels.require import (
    require_device,
    require_dtype,
    require_floating,
    require_last_contiguous,
    require_rank,
    require_shape,
)

NO_ADAPTER = -1
"""The adapter of a row that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraWeights:
    """Of all adapters that are loaded, for one linear layer."""

    a: torch.Tensor
    """[num_adapters, num_slices, max_rank, in], contiguous."""
    b: torch.Tensor
    """[num_adapters, out, max_rank], contiguous, dtype of a."""
    scales: torch.Tensor
    """[num_adapters] float32: alpha / rank, or alpha / sqrt(rank)."""
    slice_starts: torch.Tensor
    """[num_slices + 1] int32: slice s has the outputs slice_starts[s] .. slice_starts[s + 1]."""
    max_slice: int
    """Outputs of the largest slice."""

    @property
    def num_adapters(self) -> int:
        return self.a.shape[0]

    @property
    def num_slices(self) -> int:
        return self.a.shape[1]

    @property
    def max_rank(self) -> int:
        return self.a.shape[2]

    @property
    def in_features(self) -> int:
        return self.a.shape[3]

    @property
    def out_features(self) -> int:
        return self.b.shape[1]


def lora_weights(a: torch.Tensor, b: torch.Tensor, scales: torch.Tensor, slice_sizes: tuple[int, ...]) -> LoraWeights:
    """See `LoraWeights`; slice_sizes: outputs of each slice.

    Raises:
        KernelError: shapes, dtypes or devices do not go together.
    """
    require_rank("a", a, 4)
    require_floating("a", a.dtype)
    num_adapters, num_slices, max_rank, _ = a.shape
    if len(slice_sizes) != num_slices or min(slice_sizes) < 1:
        raise KernelError(
            f"slice_sizes is {list(slice_sizes)}, must be {num_slices} sizes of at least 1, as a has slices"
        )
    require_shape("b", b, (num_adapters, sum(slice_sizes), max_rank))
    require_dtype("b", b, a.dtype)
    require_shape("scales", scales, (num_adapters,))
    require_dtype("scales", scales, torch.float32)
    for name, tensor in (("b", b), ("scales", scales)):
        require_device(name, tensor, a.device)
    starts = torch.tensor([0, *slice_sizes]).cumsum(0).to(torch.int32)
    return LoraWeights(
        a=a.contiguous(),
        b=b.contiguous(),
        scales=scales.contiguous(),
        slice_starts=starts.to(a.device),
        max_slice=max(slice_sizes),
    )


def check_lora(out: torch.Tensor, x: torch.Tensor, weights: LoraWeights, num_tokens: int) -> None:
    """x: [num_tokens, in], out: [num_tokens, out], both of the adapters' dtype, last dimension contiguous."""
    for name, tensor, width in (("x", x, weights.in_features), ("out", out, weights.out_features)):
        require_shape(name, tensor, (num_tokens, width))
        require_dtype(name, tensor, weights.a.dtype)
        require_last_contiguous(name, tensor)
        require_device(name, tensor, weights.a.device)
