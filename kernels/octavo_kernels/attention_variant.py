"""What a family's attention does beyond softmax(scale * q K^T) V.

    score = scale * q . k                                  Gemma 2: soft_cap * tanh(score / soft_cap)
    score += slope * (position of k - position of q)       ALiBi; Press et al., 2021
    out = sum(exp(score) v) / (exp(sink) + sum(exp(score)))    GPT-OSS

The order is that of the lines; a window and causality come after them. A window belongs to the plan, since work is dealt
by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionVariant:
    """None stands for "does not have it"."""

    soft_cap: float | None = None
    """No score is larger; above 0."""
    alibi_slopes: torch.Tensor | None = None
    """[num_heads] float32, the bias of a token of distance, of each head."""
    sinks: torch.Tensor | None = None
    """[num_heads] float32: a score that each head gives to no key at all; -inf gives nothing."""

    @property
    def is_plain(self) -> bool:
        return self.soft_cap is None and self.alibi_slopes is None and self.sinks is None

    @property
    def description(self) -> str:
        """What it has, for whoever refuses it."""
        given = {"a soft cap": self.soft_cap, "ALiBi slopes": self.alibi_slopes, "sinks": self.sinks}
        return " and ".join(name for name, value in given.items() if value is not None)


PLAIN = AttentionVariant()
