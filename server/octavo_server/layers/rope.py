"""Rotary position embedding: which frequencies a checkpoint asks for, and the table of their cosines and sines.

Sources: RoFormer (default), position interpolation (linear), Llama 3.1's smoothing by frequency band (llama3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """How positions become angles."""

    kind: Literal["default", "linear", "llama3"] = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    """linear and llama3: how many times longer the context is than the one trained on."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    """llama3: tokens of the context trained on."""


def rope_table(
    rope: RopeConfig, rotary_dim: int, max_positions: int, frequency_divisors: Sequence[float] | None = None
) -> torch.Tensor:
    """[max_positions, rotary_dim] float32: cosines of all frequencies, then their sines.

    frequency_divisors: [rotary_dim / 2], each frequency is divided by its own (GGUF's `rope_freqs.weight`).
    """
    import torch

    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64).to(torch.float32) / rotary_dim
    frequencies = _scaled(rope, 1.0 / rope.theta**exponents)
    if frequency_divisors is not None:
        frequencies = frequencies / torch.tensor(frequency_divisors, dtype=torch.float32)
    angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), frequencies)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def _scaled(rope: RopeConfig, frequencies: torch.Tensor) -> torch.Tensor:
    if rope.kind == "default":
        return frequencies
    if rope.kind == "linear":
        return frequencies / rope.factor
    # Waves shorter than the high band keep their frequency, longer than the low band are interpolated, the rest blend.
    waves_in_context = rope.original_max_positions * frequencies / (2 * math.pi)
    span = rope.high_freq_factor - rope.low_freq_factor
    smooth = ((waves_in_context - rope.low_freq_factor) / span).clamp(0.0, 1.0)
    return (1 - smooth) * frequencies / rope.factor + smooth * frequencies
