"""Weights that a backend keeps as they are: what the handles of the torch and the Triton backend have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeLinear:
    """weight: [out, in], bias: [out]."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeExperts:
    """Of all experts, one above the other."""

    gate_up: torch.Tensor
    """[num_experts, 2 * inner, hidden]."""
    down: torch.Tensor
    """[num_experts, hidden, inner]."""

    @property
    def num_experts(self) -> int:
        return self.down.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.down.shape[1]

    @property
    def inner_size(self) -> int:
        return self.down.shape[2]
