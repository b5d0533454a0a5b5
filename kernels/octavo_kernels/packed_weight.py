"""A weight of few bits as GPUs read it; `w4a16_linear.py` says how it lies in memory. Knows no Triton."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from octavo_kernels.quantized_weight import QuantizedWeight

CHUNK = 32
"""Inputs whose codes lie side by side."""

_LARGEST = 2.0**7
"""What the largest scale of a matrix is brought close to: its numbers then stay within float16, and small scales are exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeight:
    """A matrix [out, in]."""

    bits: int
    """4 or 8."""
    group: int
    """Inputs that share a scale, a multiple of 32."""
    codes: torch.Tensor
    """[in / 32, out, 4 * bits] uint8."""
    pairs: torch.Tensor
    """[in / group, out] int32: scale and minimum as float16, divided by the factor."""
    factor: float
    """A power of 2."""

    @property
    def in_features(self) -> int:
        return self.codes.shape[0] * CHUNK

    @property
    def out_features(self) -> int:
        return self.codes.shape[1]

    @property
    def num_bytes(self) -> int:
        return self.codes.nbytes + self.pairs.nbytes

    def scales_and_minima(self) -> torch.Tensor:
        """-> [in / group, out, 2] float32."""
        return self.pairs.unsqueeze(-1).view(torch.float16).float() * self.factor


def pack(weight: QuantizedWeight, device: torch.device) -> PackedWeight:
    """Repacks on `device`. Scales and minima are rounded to float16, which those of `quantize` and of a GGUF file are."""
    codes = weight.codes.to(device).view(weight.codes.shape[0], -1, CHUNK).transpose(0, 1)
    if weight.bits == 4:
        codes = codes[..., ::2] | (codes[..., 1::2] << 4)
    pairs, factor = pack_pairs(torch.stack((weight.scales.t(), weight.minima.t()), dim=-1))
    return PackedWeight(
        bits=weight.bits, group=weight.group, codes=codes.contiguous(), pairs=pairs.to(device), factor=factor
    )


def pack_pairs(numbers: torch.Tensor) -> tuple[torch.Tensor, float]:
    """numbers: [..., 2] float32, scale and minimum -> [...] int32 and what they were divided by."""
    factor = _factor(numbers)
    return (numbers / factor).to(torch.float16).contiguous().view(torch.int32).squeeze(-1), factor


def unpack(weight: PackedWeight) -> torch.Tensor:
    """-> [out, in] float32, the numbers that it means."""
    codes = weight.codes.transpose(0, 1)
    if weight.bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), dim=-1)
    # numbers: [out, in / group, 2] float32
    numbers = weight.scales_and_minima().transpose(0, 1)
    groups = codes.reshape(weight.out_features, -1, weight.group).float()
    return groups.mul_(numbers[..., :1]).add_(numbers[..., 1:]).flatten(1)


def _factor(values: torch.Tensor) -> float:
    largest = float(values.abs().max())
    if not 0.0 < largest < math.inf:
        return 1.0
    return math.ldexp(1.0, min(max(math.frexp(largest / _LARGEST)[1], -100), 100))
