"""Runs lines beside one another, as many as it is told, and hands each answer over once.

Knows no HTTP, no disk and no engine: it asks an `Asker`. A line that was given back, or that the server was too busy
for, waits for its turn again; so every line ends in one answer, or in none where the runner was stopped.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Protocol, TypeVar

from octavo_server.batch.answers import Answer, Reply, answered, refused
from octavo_server.batch.lines import BadLine, Line

logger = logging.getLogger(__name__)

R = TypeVar("R")

TICK_S = 0.05
"""How often the load is looked at while lines run or wait."""
BUSY = (429, 503)
"""Statuses that say nothing of the line: it is asked again."""
BUSY_S = 1.0
"""For which no line begins after one of them."""


class AskError(Exception):
    """No answer came: the connection broke."""


class Asker(Protocol):
    """What answers a line, with the same checks as for everybody."""

    async def ask(self, url: str, payload: bytes) -> Reply:
        """Raises AskError."""


class LineRunner:
    """Owns the lines that run. One `run` at a time."""

    def __init__(
        self,
        asker: Asker,
        num_allowed: Callable[[int], int],
        *,
        new_id: Callable[[], str],
        clock: Callable[[], float],
    ) -> None:
        """`num_allowed(running)` says how many may run from now on; it is asked at every tick."""
        self._asker = asker
        self._num_allowed = num_allowed
        self._new_id = new_id
        self._clock = clock
        self._running: dict[asyncio.Task[Reply], Line] = {}
        self._waiting: deque[Line] = deque()
        self._source: Iterator[Line | BadLine] = iter(())
        self._is_read = True
        self._busy_until_s = 0.0

    @property
    def num_running(self) -> int:
        return len(self._running)

    async def run(
        self,
        lines: Iterator[Line | BadLine],
        on_answers: Callable[[list[Answer]], Awaitable[None]],
        must_stop: Callable[[], bool],
    ) -> bool:
        """Answers all of `lines`; False where it was stopped before. What `on_answers` raises stops it too."""
        self._source, self._is_read = lines, False
        self._waiting.clear()
        try:
            while not must_stop():
                answers = await self._begin()
                if not self._running and not answers and self._is_read and not self._waiting:
                    return True
                answers += await self._end_some()
                if answers:
                    await on_answers(answers)
            return False
        finally:
            await self._give_back(len(self._running))

    async def _begin(self) -> list[Answer]:
        """Starts what is allowed and gives back what is not; the answers of lines that cannot be asked."""
        answers: list[Answer] = []
        allowed = self._num_allowed(self.num_running)
        await self._give_back(self.num_running - allowed)
        if self._clock() < self._busy_until_s:
            return answers
        while self.num_running < allowed and len(answers) < 1000 and (line := await self._next_line()) is not None:
            if isinstance(line, BadLine):
                answers.append(refused(line, self._new_id()))
            else:
                self._running[asyncio.create_task(self._asker.ask(line.url, line.payload))] = line
        return answers

    async def _next_line(self) -> Line | BadLine | None:
        if self._waiting:
            return self._waiting.popleft()
        if self._is_read:
            return None
        # A line may be tens of MB, and its reading must not hold up streams.
        line = await in_thread(lambda: next(self._source, None))
        self._is_read = line is None
        return line

    async def _end_some(self) -> list[Answer]:
        """The answers that came within a tick."""
        if not self._running:
            await asyncio.sleep(TICK_S)
            return []
        done, _ = await asyncio.wait(self._running, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
        answers = []
        for task in done:
            line = self._running.pop(task)
            reply = self._reply(task, line)
            if reply is None:
                self._waiting.append(line)
                self._busy_until_s = self._clock() + BUSY_S
            else:
                answers.append(answered(line, reply, self._new_id()))
        return answers

    def _reply(self, task: asyncio.Task[Reply], line: Line) -> Reply | None:
        """None: to be asked again."""
        error = task.exception()
        if isinstance(error, AskError):
            logger.debug("line %d is asked again: %s", line.number, error)
            return None
        reply = task.result()
        return None if reply.status in BUSY else reply

    async def _give_back(self, count: int) -> None:
        """Ends the newest lines that run; their turn comes again."""
        newest: Mapping[asyncio.Task[Reply], Line] = dict(list(self._running.items())[::-1][: max(0, count)])
        for task, line in newest.items():
            task.cancel()
            del self._running[task]
            self._waiting.appendleft(line)
        # An answer that came all the same is dropped with its line's turn.
        await asyncio.gather(*newest, return_exceptions=True)


async def in_thread(function: Callable[[], R]) -> R:
    """`function()` on another thread, which has ended when this ends, even where that is by being cancelled."""
    task = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
