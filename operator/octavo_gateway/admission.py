"""Bounded holding: who may wait for a replica, how long, and when a waiting stream needs a sign of life.

Pure: time comes in as ``now`` (seconds of any monotonic clock), waiting itself is the proxy's business.
Invariant: ``count(key)`` is the number of ``Hold`` objects that entered and have not left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

HEARTBEAT_EVERY_S = 10.0
"""A held stream's first comment line comes after this time, and one more after each such time."""


@dataclass(slots=True, kw_only=True)
class Hold:
    """One request's waiting; it may enter and leave several times while its one deadline stands."""

    key: str
    limit: int
    since: float
    deadline: float
    next_heartbeat: float
    is_in: bool = False

    def remaining_s(self, now: float) -> float:
        return max(0.0, self.deadline - now)

    def is_expired(self, now: float) -> bool:
        return now >= self.deadline

    def wait_s(self, now: float, *, heartbeats: bool) -> float:
        """Seconds until something is due: the deadline, or the next heartbeat of a stream."""
        due = min(self.deadline, self.next_heartbeat) if heartbeats else self.deadline
        return max(0.0, due - now)

    def take_heartbeat(self, now: float) -> bool:
        """Whether a heartbeat is due; asking moves the next one on."""
        if now < self.next_heartbeat:
            return False
        self.next_heartbeat = now + HEARTBEAT_EVERY_S
        return True


class Admission:
    """Counts the held requests of each model; an entry lives only while somebody waits, so the map is bounded."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    def new_hold(self, key: str, *, limit: int, timeout_s: float, now: float) -> Hold:
        return Hold(key=key, limit=limit, since=now, deadline=now + timeout_s, next_heartbeat=now + HEARTBEAT_EVERY_S)

    def try_enter(self, hold: Hold) -> bool:
        """Whether there is room for one more; a hold that is already in stays in."""
        if hold.is_in:
            return True
        if self.count(hold.key) >= hold.limit:
            return False
        self._held[hold.key] = self.count(hold.key) + 1
        hold.is_in = True
        return True

    def leave(self, hold: Hold) -> None:
        if not hold.is_in:
            return
        hold.is_in = False
        left = self._held[hold.key] - 1
        if left:
            self._held[hold.key] = left
        else:
            del self._held[hold.key]

    def count(self, key: str) -> int:
        return self._held.get(key, 0)

    def held(self) -> dict[str, int]:
        return dict(self._held)


def retry_after_s(*, hold_timeout_s: float) -> int:
    """What a refused client is told: a twentieth of the longest hold, between 1 and 30 seconds."""
    return max(1, min(30, math.ceil(hold_timeout_s / 20)))
