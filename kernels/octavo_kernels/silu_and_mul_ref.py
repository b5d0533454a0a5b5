"""Reference of `silu_and_mul.py`: silu(gate) * up, with silu(g) = g / (1 + exp(-g)), in float32."""

from __future__ import annotations

import torch

from octavo_kernels.checks import check_silu_and_mul


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """x: [num_tokens, 2 * d], gate beside up -> new [num_tokens, d], dtype of x."""
    check_silu_and_mul(x)
    gate, up = x.float().chunk(2, dim=1)
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)
