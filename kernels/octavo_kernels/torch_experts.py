"""Experts on a CPU: one after another, each on the rows that chose it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from octavo_kernels.torch_elementwise import silu_and_mul

Mlp = Callable[[int, torch.Tensor], torch.Tensor]
"""(expert, its rows [n, hidden]) -> [n, hidden]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchExperts:
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


def run_experts(x: torch.Tensor, expert_ids: torch.Tensor, expert_weights: torch.Tensor, mlp: Mlp) -> torch.Tensor:
    """See `KernelBackend.experts`. A row adds up in float32, its experts in rising order, whatever else is in the step."""
    num_chosen = expert_ids.shape[1]
    out = torch.zeros(x.shape, dtype=torch.float32)
    chosen, shares = expert_ids.flatten(), expert_weights.flatten()
    # own: [rows of one expert] int64, the pairs token * num_chosen + slot that chose it
    for expert, own in enumerate(torch.split(chosen.argsort(stable=True), chosen.bincount().tolist())):
        if own.shape[0]:
            rows = own // num_chosen
            out.index_add_(0, rows, mlp(expert, x[rows]).float() * shares[own].unsqueeze(1))
    return out.to(x.dtype)


def torch_mlp(handle: TorchExperts, linear: Callable[..., torch.Tensor]) -> Mlp:
    """`linear`: see `torch_linear.Linear`."""

    def mlp(expert: int, rows: torch.Tensor) -> torch.Tensor:
        return linear(silu_and_mul(linear(rows, handle.gate_up[expert], None)), handle.down[expert], None)

    return mlp
