"""How far the start has come: written by the engine's thread, read by `/startup` and `/health`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

Stage = Literal["starting", "downloading", "loading_weights", "warming_up", "ready", "failed"]


class StartupProgress:
    """One writer, any readers; each attribute is replaced whole, so a reader needs no lock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.stage: Stage = "starting"
        self.bytes = 0
        self.total_bytes = 0
        self.message = ""
        self.stage_seconds: dict[str, float] = {}
        """Seconds of each stage that has ended."""
        self._stage_began_s = self.moved_s = clock()

    def enter(self, stage: Stage, message: str = "") -> None:
        """Ends the current stage and begins `stage`."""
        now = self._clock()
        self.stage_seconds = {**self.stage_seconds, self.stage: round(now - self._stage_began_s, 3)}
        self._stage_began_s = self.moved_s = now
        self.message = message
        self.stage = stage

    def add_bytes(self, done: int, total: int) -> None:
        """`done` of `total` bytes of the current stage are there."""
        self.bytes, self.total_bytes = done, total
        self.moved_s = self._clock()

    def idle_s(self) -> float:
        """Seconds since anything moved."""
        return self._clock() - self.moved_s
