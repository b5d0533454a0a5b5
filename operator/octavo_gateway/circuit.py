"""When a sick replica is left alone: after failures in a row, for a growing time, then one probe at a time.

Pure: time comes in as ``now``, seconds of any monotonic clock.

| state     | requests | left by |
|-----------|----------|---------|
| closed    | all      | ``EJECT_AFTER`` failures in a row → open |
| open      | none     | its time is over → half open |
| half open | one at a time | an answer → closed; a failure → open, for twice as long |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

EJECT_AFTER = 5
FIRST_EJECTION_S = 5.0
MAX_EJECTION_S = 300.0


@dataclass(slots=True)
class Circuit:
    """One replica's; owned by the balancer."""

    failures: int = 0
    """In a row, since the last answer."""
    ejections: int = 0
    """In a row, since the last answer."""
    ejected_until: float | None = None
    is_probing: bool = False

    def is_half_open(self, now: float) -> bool:
        return self.ejected_until is not None and now >= self.ejected_until

    def blocks(self, now: float) -> bool:
        if self.ejected_until is None:
            return False
        return self.is_probing or now < self.ejected_until

    def record_answer(self) -> None:
        self.failures = self.ejections = 0
        self.ejected_until = None
        self.is_probing = False

    def record_failure(self, now: float) -> float | None:
        """Seconds for which it is ejected now; None where it is not."""
        self.failures += 1
        is_open = self.ejected_until is not None and now < self.ejected_until
        if is_open or (self.failures < EJECT_AFTER and not self.is_half_open(now)):
            return None
        # The exponent is bounded because a float is.
        seconds = min(MAX_EJECTION_S, FIRST_EJECTION_S * 2.0 ** min(self.ejections, 30))
        self.ejections += 1
        self.failures = 0
        self.ejected_until = now + seconds
        return seconds


def ejected(circuits: Mapping[str, Circuit], *, num_replicas: int, now: float) -> frozenset[str]:
    """Which of a model's replicas get nothing: at most half of them, those that may come back last."""
    blocked = [name for name, circuit in circuits.items() if circuit.blocks(now)]
    blocked.sort(key=lambda name: (_until(circuits[name]), name), reverse=True)
    return frozenset(blocked[: num_replicas // 2])


def _until(circuit: Circuit) -> float:
    return circuit.ejected_until or 0.0
