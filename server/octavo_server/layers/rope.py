"""Rotary position embedding: which frequencies a checkpoint asks for, and the table of their cosines and sines.

Sources: RoFormer (default), position interpolation (linear), Llama 3.1's smoothing by frequency band (llama3), "YaRN:
Efficient Context Window Extension of Large Language Models", Peng et al., 2023 (yarn).
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

    kind: Literal["default", "linear", "dynamic", "llama3", "yarn"] = "default"
    """dynamic is the default up to the length trained on, which no context exceeds: past it all frequencies would change
    with each token, and with them what the cached keys ought to be."""
    theta: float = 10_000.0
    factor: float = 1.0
    """linear, llama3, yarn: how many times longer the context is than the one trained on."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    """llama3, yarn: tokens of the context trained on."""
    beta_fast: float = 32.0
    """yarn: dimensions that turn more often than this within that context keep their frequency."""
    beta_slow: float = 1.0
    """yarn: those that turn less often are interpolated; between the two they blend."""
    truncate: bool = True
    """yarn: the blend begins and ends at whole dimensions."""
    attention_factor: float = 1.0
    """yarn: multiplies cosines and sines, and so scores by its square."""


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
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * rope.attention_factor


def _scaled(rope: RopeConfig, frequencies: torch.Tensor) -> torch.Tensor:
    if rope.kind in ("default", "dynamic"):
        return frequencies
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "yarn":
        kept = 1 - _interpolated_share(rope, 2 * len(frequencies))
        return frequencies / rope.factor * (1 - kept) + frequencies * kept
    # Waves shorter than the high band keep their frequency, longer than the low band are interpolated, the rest blend.
    waves_in_context = rope.original_max_positions * frequencies / (2 * math.pi)
    span = rope.high_freq_factor - rope.low_freq_factor
    smooth = ((waves_in_context - rope.low_freq_factor) / span).clamp(0.0, 1.0)
    return (1 - smooth) * frequencies / rope.factor + smooth * frequencies


def _interpolated_share(rope: RopeConfig, rotary_dim: int) -> torch.Tensor:
    """[rotary_dim / 2] float32, yarn's ramp: 0 where a frequency is kept, 1 where it is divided by the factor."""
    import torch

    low, high = (_dimension_that_turns(turns, rope, rotary_dim) for turns in (rope.beta_fast, rope.beta_slow))
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if low == high:
        high += 0.001
    return ((torch.arange(rotary_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)


def _dimension_that_turns(turns: float, rope: RopeConfig, rotary_dim: int) -> float:
    """The pair of dimensions, as a fraction, that turns so many times within the context trained on."""
    waves = rope.original_max_positions / (turns * 2 * math.pi)
    return rotary_dim * math.log(waves) / (2 * math.log(rope.theta))
