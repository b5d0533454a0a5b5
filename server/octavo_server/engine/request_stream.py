"""The outputs of one client's requests as they come to their one reader.

What the reader has not taken yet is joined, so a slow reader holds nobody and costs little more than its own output.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from octavo_server.engine.engine import OutputDelta
from octavo_server.engine.messages import joined_deltas
from octavo_server.engine.request import FinishReason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo_server.engine.request import Request


MAX_PARTS = 256
"""Deltas of one output that are kept apart; joining at each would copy all that waits for each token."""


class RequestStream:
    """A completion may bring several requests, one a prompt. Every output ends once, whatever happens."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = tuple(requests)
        self.observer: Callable[[OutputDelta], None] | None = None
        """Sees each delta as it comes, before it is joined or read."""
        self._pending: dict[tuple[str, int], list[OutputDelta]] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._open = {(item.request_id, index) for item in requests for index in range(item.params.n)}

    @property
    def num_outputs(self) -> int:
        return sum(item.params.n for item in self.requests)

    @property
    def is_finished(self) -> bool:
        """Whether every output has had its last delta (read or not)."""
        return not self._open

    async def read(self) -> list[OutputDelta]:
        """What came since the last call, one delta an output and at least one; empty once all have ended and were read."""
        while not self._pending:
            if self.is_finished:
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        pending, self._pending = self._pending, {}
        return [joined_deltas(parts) for parts in pending.values()]

    def push(self, delta: OutputDelta) -> None:
        """Takes a delta; what comes after an output's last one is dropped."""
        output = (delta.request_id, delta.index)
        if output not in self._open:
            return
        if delta.finish_reason is not None:
            self._open.discard(output)
        if self.observer is not None:
            self.observer(delta)
        parts = self._pending.setdefault(output, [])
        parts.append(delta)
        if len(parts) >= MAX_PARTS:
            self._pending[output] = [joined_deltas(parts)]
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, message: str) -> None:
        """Ends every output that is still open."""
        for request_id, index in sorted(self._open):
            self.push(OutputDelta(request_id=request_id, index=index, finish_reason=FinishReason.ERROR, error=message))
