"""How far the start has come: written where the model is loaded, read by `/startup` and `/health`."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from octavo_server.engine.messages import Progressed

RATE_WINDOW_S = 10.0
"""What came before is no news of how fast it goes now."""

Stage = Literal["starting", "downloading", "loading_weights", "warming_up", "ready", "failed"]


class StartupProgress:
    """The loader writes one and tells of each change; the clients' side has another, which follows it."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[StartupProgress], None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._on_change = on_change
        self.stage: Stage = "starting"
        self.bytes = 0
        self.total_bytes = 0
        self.message = ""
        self.stage_seconds: dict[str, float] = {}
        """Seconds of each stage that has ended."""
        self.location = ""
        """Where on this machine the model lies; empty until that is known."""
        self._stage_began_s = self.moved_s = clock()
        self._seen: deque[tuple[float, int]] = deque()
        """(time, bytes) of the current stage, the last RATE_WINDOW_S."""

    def enter(self, stage: Stage, message: str = "") -> None:
        """Ends the current stage and begins `stage`."""
        now = self._clock()
        self.stage_seconds = {**self.stage_seconds, self.stage: round(now - self._stage_began_s, 3)}
        self._stage_began_s = self.moved_s = now
        self.message = message
        self.stage = stage
        self.bytes = self.total_bytes = 0
        self._seen.clear()
        self._on_change(self)

    def locate(self, path: Path) -> None:
        """The model's files are there."""
        self.location = str(path)
        self._on_change(self)

    def add_bytes(self, done: int, total: int) -> None:
        """`done` of `total` bytes of the current stage are there."""
        self.bytes, self.total_bytes = done, total
        self.moved_s = self._clock()
        self._note(done)
        self._on_change(self)

    def follow(self, told: Progressed) -> None:
        """Takes over what the loader's own progress said."""
        self.moved_s = self._clock()
        if told.stage != self.stage:
            self._stage_began_s = self.moved_s
            self._seen.clear()
        self.stage, self.message, self.stage_seconds = told.stage, told.message, told.stage_seconds
        self.bytes, self.total_bytes, self.location = told.bytes, told.total_bytes, told.location
        if told.total_bytes:
            self._note(told.bytes)

    def idle_s(self) -> float:
        """Seconds since anything moved."""
        return self._clock() - self.moved_s

    def bytes_per_second(self) -> float:
        """How fast the current stage went in the last seconds; 0 where nobody counts bytes."""
        if len(self._seen) < 2:
            return 0.0
        (since_s, before), (_, now) = self._seen[0], self._seen[-1]
        passed_s = self._clock() - since_s
        return max(0, now - before) / passed_s if passed_s > 0 else 0.0

    def _note(self, done: int) -> None:
        now = self._clock()
        if len(self._seen) > 1 and now - self._seen[-2][0] < RATE_WINDOW_S / 50:
            # A fast download tells of every piece.
            self._seen.pop()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= RATE_WINDOW_S:
            self._seen.popleft()
