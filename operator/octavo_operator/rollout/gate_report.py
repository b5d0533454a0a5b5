"""What is asked of a pod for a rollout's gate, and what came of it, as values."""

from __future__ import annotations

from dataclasses import dataclass

from octavo_operator.api.types import RolloutGate


@dataclass(frozen=True, slots=True, kw_only=True)
class GateCheck:
    """What is asked of one pod."""

    state: str
    """Measuring or Running: of Measuring only the speed counts."""
    revision: str
    address: str
    """IP address of the pod."""
    model: str
    """Name by which it serves the model."""
    gate: RolloutGate
    baseline: float = 0.0
    """Tokens a second of the revision before; 0 where they are unknown or do not matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """What came of a check."""

    check: GateCheck
    problem: str = ""
    """What failed; "" where all is well."""
    tokens_per_second: float = 0.0
