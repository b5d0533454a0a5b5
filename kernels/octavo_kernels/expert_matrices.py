"""One matrix of each expert of a layer, in one piece of memory: as in the checkpoint, of few bits, or of float8. Knows no Triton."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from octavo_kernels.errors import KernelError
from octavo_kernels.fp8_weight import Fp8Weight
from octavo_kernels.packed_weight import CHUNK, PackedWeight, pack_pairs, unpack
from octavo_kernels.require import require_floating


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedMatrices:
    """Each lies as a `PackedWeight` does; one factor is all experts'."""

    bits: int
    """4 or 8."""
    group: int
    """Inputs that share a scale, a multiple of 32."""
    codes: torch.Tensor
    """[num_experts, in / 32, out, 4 * bits] uint8."""
    pairs: torch.Tensor
    """[num_experts, in / group, out] int32."""
    factor: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """(num_experts, out, in)."""
        num_experts, num_chunks, num_rows, _ = self.codes.shape
        return num_experts, num_rows, num_chunks * CHUNK

    def numbers(self) -> torch.Tensor:
        """-> [num_experts, out, in] float32, what it means."""
        return torch.stack([unpack(self._of(expert)) for expert in range(self.shape[0])])

    def _of(self, expert: int) -> PackedWeight:
        return PackedWeight(
            bits=self.bits,
            group=self.group,
            codes=self.codes[expert],
            pairs=self.pairs[expert],
            factor=self.factor,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Matrices:
    """Value = scale * code, a scale for each output of each expert."""

    codes: torch.Tensor
    """[num_experts, out, in] float8_e4m3fn, contiguous."""
    scales: torch.Tensor
    """[num_experts, out] float32."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(num_experts, out, in)."""
        num_experts, num_rows, num_columns = self.codes.shape
        return num_experts, num_rows, num_columns

    def numbers(self) -> torch.Tensor:
        """-> [num_experts, out, in] float32, what it means."""
        return self.codes.float() * self.scales.unsqueeze(-1)


ExpertMatrices = torch.Tensor | PackedMatrices | Fp8Matrices
"""Of shape (num_experts, out, in); a tensor is contiguous, of a floating dtype."""


def rows_dtype(x: torch.Tensor, gate_up: ExpertMatrices, down: ExpertMatrices) -> torch.dtype:
    """What x must be: as matrices that are kept whole are, else of any floating dtype."""
    require_floating("x", x.dtype)
    return next((each.dtype for each in (gate_up, down) if isinstance(each, torch.Tensor)), x.dtype)


def stack_packed(weights: Sequence[PackedWeight]) -> PackedMatrices:
    """One an expert, all of one shape.

    Raises:
        KernelError: they have not all as many bits, or groups of other sizes.
    """
    layouts = sorted({(weight.bits, weight.group) for weight in weights})
    if len(layouts) > 1:
        found = " and ".join(f"{bits} bits in groups of {group}" for bits, group in layouts)
        raise KernelError(f"experts of one layer have {found}; they must have the same")
    (bits, group) = layouts[0]
    # numbers: [num_experts, in / group, out, 2] float32, scale and minimum
    numbers = torch.stack([weight.scales_and_minima() for weight in weights])
    pairs, factor = pack_pairs(numbers)
    codes = torch.stack([weight.codes for weight in weights])
    return PackedMatrices(bits=bits, group=group, codes=codes, pairs=pairs, factor=factor)


def stack_fp8(weights: Sequence[Fp8Weight]) -> Fp8Matrices:
    """One an expert, all of one shape."""
    # torch stacks no float8 on every device
    codes = torch.stack([weight.codes.view(torch.uint8) for weight in weights]).view(weights[0].codes.dtype)
    return Fp8Matrices(codes=codes, scales=torch.stack([weight.scales for weight in weights]))
