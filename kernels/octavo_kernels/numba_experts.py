"""Experts as single linear layers, quantised or not: what the compiled CPU backend keeps of a mixture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo_kernels.errors import KernelError

if TYPE_CHECKING:
    from octavo_kernels.handles import LinearHandle


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearExperts:
    """An entry an expert."""

    gate_up: tuple[LinearHandle, ...]
    """hidden -> 2 * inner: gate, then up."""
    down: tuple[LinearHandle, ...]
    """inner -> hidden."""

    def __post_init__(self) -> None:
        shapes = {(handle.in_features, handle.out_features) for handle in self.gate_up}
        fitting = {(2 * handle.in_features, handle.out_features) for handle in self.down}
        if len(self.gate_up) != len(self.down) or len(shapes) != 1 or fitting != {size[::-1] for size in shapes}:
            raise KernelError(
                f"{len(self.gate_up)} gate_up of (inputs, outputs) {sorted(shapes)} and {len(self.down)} down of "
                f"(2 * inputs, outputs) {sorted(fitting)}; must be as many, of one shape, and the one's transposed"
            )

    @property
    def num_experts(self) -> int:
        return len(self.down)

    @property
    def hidden_size(self) -> int:
        return self.down[0].out_features

    @property
    def inner_size(self) -> int:
        return self.down[0].in_features
