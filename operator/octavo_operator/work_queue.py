"""A queue of keys for level-triggered work: one key is never worked on twice at once, and waits at most once.

A key that is added while it is being worked on is worked on again afterwards. A failed key comes back after a delay
that doubles, with jitter, so that a thousand of them do not come back together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")

FIRST_DELAY_S = 0.25
MAX_DELAY_S = 60.0


class WorkQueue(Generic[K]):
    """Owns the keys that wait, those in work, and the number of failures in a row of each."""

    def __init__(self, *, jitter: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        """`jitter` gives a number in [0, 1), `clock` seconds."""
        self._jitter = jitter
        self._clock = clock
        self._moved_at = clock()
        self._ready: asyncio.Queue[K] = asyncio.Queue()
        self._waiting: set[K] = set()
        self._in_work: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}

    def __len__(self) -> int:
        """Keys that wait or are in work; those that wait for a time are not counted."""
        return len(self._waiting) + len(self._in_work)

    @property
    def still_s(self) -> float:
        """Seconds for which keys have waited or been in work and none was taken or done; 0 of an empty queue."""
        return self._clock() - self._moved_at if len(self) else 0.0

    def add(self, key: K) -> None:
        if not len(self):
            self._moved_at = self._clock()
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._in_work:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)

    def add_after(self, key: K, delay_s: float) -> None:
        """Adds the key later; the earlier of two times wins."""
        due = asyncio.get_running_loop().time() + delay_s
        timer = self._timers.get(key)
        if key in self._waiting or (timer is not None and timer.when() <= due):
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = asyncio.get_running_loop().call_at(due, self.add, key)

    async def get(self) -> K:
        """The next key; `done` must follow."""
        key = await self._ready.get()
        self._moved_at = self._clock()
        self._waiting.discard(key)
        self._in_work.add(key)
        return key

    def done(self, key: K) -> None:
        self._moved_at = self._clock()
        self._in_work.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def retry(self, key: K, *, at_least_s: float = 0.0) -> float:
        """The work failed: the key comes back after the delay that is returned, in seconds."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay_s: float = min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** min(failures - 1, 16)) * (0.5 + self._jitter())
        delay_s = max(delay_s, min(MAX_DELAY_S, at_least_s))
        self.add_after(key, delay_s)
        return delay_s

    def forgive(self, key: K) -> None:
        """The work succeeded: the next failure starts with the shortest delay."""
        self._failures.pop(key, None)
