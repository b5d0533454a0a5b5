"""How many lines of a batch may run beside live traffic. Pure: the clock and the load are parameters.

Live requests come first. While one waits no line begins, and when that lasts, running lines are given back one after
the other, newest first; what was computed for them is computed again later. While live requests run, a batch keeps to a
quarter of its places; alone it may use them all.
"""

from __future__ import annotations

from dataclasses import dataclass

PATIENCE_S = 1.0
"""A live request that waits for so long beside lines gets the places of some."""

BETWEEN_S = 0.1
"""From one line given back to the next, so that its place can be taken first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the server does at the moment."""

    is_open: bool
    """Whether lines may run at all: the model is ready and the server does not drain."""
    num_live: int
    """Requests of clients that have not ended."""
    num_waiting: int
    """Outputs, lines' included, that wait in the engine."""
    max_num_seqs: int


class Pace:
    """Decides for one batch after the other; owns since when somebody waits."""

    def __init__(self, max_lines: int) -> None:
        self._max_lines = max_lines
        self._waiting_since_s: float | None = None

    def num_allowed(self, load: Load, num_running: int, now_s: float) -> int:
        """Lines that may run from now on; fewer than run already means that the newest are given back."""
        if not load.is_open:
            return 0
        places = max(1, min(self._max_lines, load.max_num_seqs))
        if load.num_live == 0:
            self._waiting_since_s = None
            return places
        if load.num_waiting == 0:
            self._waiting_since_s = None
            return max(num_running, min(places, max(1, places // 4)))
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        if now_s - self._waiting_since_s < PATIENCE_S:
            return num_running
        self._waiting_since_s = now_s - PATIENCE_S + BETWEEN_S
        return max(0, num_running - 1)
