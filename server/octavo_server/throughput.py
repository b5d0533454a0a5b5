"""The most output tokens a second that this server has shown: what an owner may count on from one replica. Pure."""

from __future__ import annotations

WINDOW_S = 10.0
"""Long enough that a burst of one step does not pass for a rate."""


class Throughput:
    """Counts tokens in windows of WINDOW_S; `now` is monotonic, in seconds."""

    def __init__(self, now: float) -> None:
        self._began_s = now
        self._count = 0
        self._peak = 0.0

    def add(self, num_tokens: int, now: float) -> None:
        """Output tokens that were made until `now`."""
        self._close(now)
        self._count += num_tokens

    def peak(self, now: float) -> float:
        """Tokens per second of the best window that has ended; 0 before the first."""
        self._close(now)
        return self._peak

    def _close(self, now: float) -> None:
        passed_s = now - self._began_s
        if passed_s >= WINDOW_S:
            self._peak = max(self._peak, self._count / passed_s)
            self._began_s, self._count = now, 0
