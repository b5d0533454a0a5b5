"""A weight of float8 (e4m3: 4 bits of exponent, 3 of mantissa) with a scale for each output. Knows no Triton.

Micikevicius et al., "FP8 Formats for Deep Learning", 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from octavo_kernels.errors import KernelError
from octavo_kernels.require import require_dtype, require_rank, require_shape

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""The largest number of e4m3."""

FP8_MULTIPLE = 16
"""Of inputs and of outputs: what the vendors' products of float8 take."""

MIN_CAPABILITY = (8, 9)
"""Of NVIDIA's GPUs: the first whose matrix units have float8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Weight:
    """A matrix [out, in]: value = scale * code."""

    codes: torch.Tensor
    """[out, in] float8_e4m3fn, contiguous."""
    scales: torch.Tensor
    """[out] float32; of a weight with one scale all are equal."""

    def __post_init__(self) -> None:
        require_rank("codes", self.codes, 2)
        require_dtype("codes", self.codes, FP8)
        num_rows, num_columns = self.codes.shape
        require_shape("scales", self.scales, (num_rows,))
        require_dtype("scales", self.scales, torch.float32)
        if num_rows % FP8_MULTIPLE or num_columns % FP8_MULTIPLE:
            raise KernelError(
                f"a float8 matrix of {num_rows} outputs and {num_columns} inputs; both must be multiples of "
                f"{FP8_MULTIPLE}, keep it in its dtype"
            )

    @property
    def num_bytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes


def stack_fp8_rows(parts: Sequence[Fp8Weight]) -> Fp8Weight:
    """The outputs of all parts, one below the other."""
    # torch joins no float8 on every device
    codes = torch.cat([part.codes.view(torch.uint8) for part in parts]).view(FP8)
    return Fp8Weight(codes=codes, scales=torch.cat([part.scales for part in parts]))


def quantize_fp8(weight: torch.Tensor) -> Fp8Weight:
    """weight: [out, in] of any floating dtype -> the nearest codes, each output's largest value being 448.

    Raises:
        KernelError: inputs or outputs are no multiple of 16.
    """
    codes, scales = quantize_rows(weight)
    return Fp8Weight(codes=codes, scales=scales)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x: [num_rows, width] of any floating dtype -> [num_rows, width] float8 and scales [num_rows] float32.

    The scale of a row is its largest value over 448, or 1 where that is 0.
    """
    values = x.float()
    largest = values.abs().amax(dim=-1) if x.shape[1] else values.new_zeros(x.shape[0])
    scales = torch.where(largest > 0, largest / FP8_MAX, 1.0)
    return (values / scales.unsqueeze(-1)).clamp(-FP8_MAX, FP8_MAX).to(FP8), scales


def check_fp8_device(name: str, capability: tuple[int, int] | None) -> None:
    """Raises `KernelError` for a device without float8 of this format; capability: of an NVIDIA GPU, None of another's."""
    if capability is None or capability < MIN_CAPABILITY:
        has = "is none of NVIDIA's" if capability is None else f"has {capability[0]}.{capability[1]}"
        raise KernelError(
            f"float8 needs a GPU of compute capability {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]} or newer (L4, L40S, H100), "
            f"{name} {has}; use int8"
        )
