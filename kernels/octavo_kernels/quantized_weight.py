"""Weights of few bits: what they mean, how they are made from numbers, and back. Knows no layout of any backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from octavo_kernels.errors import KernelError

GROUP = 32
"""Inputs that share a scale and a minimum at least, as in GGUF's small blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedWeight:
    """A matrix [out, in] as codes: value = scale * code + minimum, in groups of 32 along `in`, or of a multiple.

    Q4_0, Q4_1 and Q8_0 blocks of GGUF are this without loss: a fixed offset of the codes is part of the minimum.
    """

    bits: int
    """4 or 8: codes are below 2**bits."""
    codes: torch.Tensor
    """[out, in] uint8."""
    scales: torch.Tensor
    """[out, in / group] float32."""
    minima: torch.Tensor
    """Like scales."""

    def __post_init__(self) -> None:
        num_rows, num_columns = self.codes.shape
        if self.bits not in (4, 8) or num_columns % GROUP:
            raise KernelError(f"{self.bits} bits and {num_columns} inputs; must be 4 or 8, and a multiple of {GROUP}")
        if self.scales.ndim != 2 or self.scales.shape[1] == 0 or num_columns // GROUP % self.scales.shape[1]:
            raise KernelError(
                f"scales is {list(self.scales.shape)}, must be {[num_rows, num_columns // GROUP]}, or of fewer columns "
                f"that divide {num_columns // GROUP}"
            )
        for name, tensor in (("scales", self.scales), ("minima", self.minima)):
            if tensor.shape != (num_rows, self.scales.shape[1]):
                raise KernelError(f"{name} is {list(tensor.shape)}, must be {[num_rows, self.scales.shape[1]]}")

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.codes.shape[1] // self.scales.shape[1]

    @property
    def is_symmetric(self) -> bool:
        """Whether these are 8 bits around code 128, so that the scales say all."""
        return self.bits == 8 and torch.equal(self.minima, -128 * self.scales)

    def dequantize(self) -> torch.Tensor:
        """-> [out, in] float32, new memory."""
        groups = self.codes.float().view(*self.scales.shape, self.group)
        return groups.mul_(self.scales.unsqueeze(-1)).add_(self.minima.unsqueeze(-1)).flatten(1)

    def to(self, device: torch.device) -> QuantizedWeight:
        """The same numbers there."""
        codes, scales, minima = (each.to(device) for each in (self.codes, self.scales, self.minima))
        return replace(self, codes=codes, scales=scales, minima=minima)

    def in_small_groups(self) -> QuantizedWeight:
        """The same numbers with a scale for every 32 inputs."""
        repeats = self.group // GROUP
        if repeats == 1:
            return self
        scales, minima = (values.repeat_interleave(repeats, dim=1) for values in (self.scales, self.minima))
        return replace(self, scales=scales, minima=minima)


def quantize(weight: torch.Tensor, bits: int) -> QuantizedWeight:
    """weight: [out, in], in a multiple of 32, any floating dtype -> the nearest codes between each group's extremes.

    Scales and minima have the 11 bits of float16's numbers, in which they are packed; rounded so that no value is cut.
    8 bits are symmetric around 0, as Q8_0 is; 4 bits span from the least to the largest value, as Q4_1 does.
    """
    groups = _groups(weight.float().contiguous())
    if bits == 8:
        scales = -_rounded_down(groups.abs().amax(dim=-1) / -127)
        minima = -128 * scales
    else:
        minima = _rounded_down(groups.amin(dim=-1))
        scales = -_rounded_down((groups.amax(dim=-1) - minima) / (1 - 2**bits))
    # a group of one value has scale 0, and any code of it is right
    steps = torch.where(scales > 0, scales, 1.0).unsqueeze(-1)
    codes = ((groups - minima.unsqueeze(-1)) / steps).round_().clamp_(0, 2**bits - 1)
    return QuantizedWeight(bits=bits, codes=codes.to(torch.uint8).flatten(1), scales=scales, minima=minima)


def stack(parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """The rows of all parts, one below the other; codes of 4 bits are valid as codes of 8."""
    if len(parts) == 1:
        return parts[0]
    if len({part.group for part in parts}) > 1:
        parts = [part.in_small_groups() for part in parts]
    return QuantizedWeight(
        bits=max(part.bits for part in parts),
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        minima=torch.cat([part.minima for part in parts]),
    )


def filled_up(weight: QuantizedWeight, num_rows: int, num_columns: int) -> QuantizedWeight:
    """With zeros, to [num_rows, num_columns], the columns a multiple of 32."""
    rows, columns = num_rows - weight.codes.shape[0], num_columns - weight.codes.shape[1]
    if not rows and not columns:
        return weight
    weight = weight.in_small_groups()
    return QuantizedWeight(
        bits=weight.bits,
        codes=torch.nn.functional.pad(weight.codes, (0, columns, 0, rows)),
        scales=torch.nn.functional.pad(weight.scales, (0, columns // GROUP, 0, rows)),
        minima=torch.nn.functional.pad(weight.minima, (0, columns // GROUP, 0, rows)),
    )


def _rounded_down(values: torch.Tensor) -> torch.Tensor:
    """To the next number of 11 bits that is not larger."""
    fractions, exponents = values.frexp()
    return (fractions * 2048).floor_().div_(2048).ldexp_(exponents)


def _groups(matrix: torch.Tensor) -> torch.Tensor:
    """[out, in] -> [out, in / 32, 32], a view."""
    return matrix.view(matrix.shape[0], -1, GROUP)
