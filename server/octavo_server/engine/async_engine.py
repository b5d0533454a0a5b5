"""The engine as asyncio sees it: requests in, streams of deltas out, and whether it lives.

Where the engine runs, on a thread or in a process of its own, is its host's matter; all that is promised is promised
here. Every submitted request ends in exactly one terminal delta for each of its outputs, whatever happens to the engine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from octavo_server.engine.messages import Abort, Add, Died, Progressed, Ready, Stepped
from octavo_server.engine.request_stream import RequestStream
from octavo_server.engine.startup import StartupProgress
from octavo_server.errors import (
    EngineDeadError,
    EngineStuckError,
    InvalidRequestError,
    OctavoError,
    QueueFullError,
    StartupError,
)
from octavo_server.metrics import EngineSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo_server.engine.messages import Command, Event
    from octavo_server.engine.records import EngineRecords
    from octavo_server.engine.request import Request
    from octavo_server.engine.served_model import ServedModel

logger = logging.getLogger(__name__)

WATCH_TICK_S = 1.0
STUCK_GRACE_S = 30.0
"""Being stuck for so long beyond the stall time-out, the engine is given up; until then /health says it and a kubelet
may act first."""


class EngineState(StrEnum):
    """LOADING → READY → STOPPED, or DEAD from either."""

    LOADING = "loading"
    READY = "ready"
    DEAD = "dead"
    STOPPED = "stopped"


class EngineHost(Protocol):
    """Where the engine runs. All methods belong to the event loop's thread, and events come to it there."""

    def start(self, listener: Callable[[Event], None]) -> None:
        """Begins to load; events go to `listener`, in order."""

    def send(self, commands: Sequence[Command]) -> None:
        """Hands commands over, in order, all or none.

        Raises:
            ValueError, TypeError, OverflowError: one of them holds what cannot be handed over.
        """

    async def served_model(self, ready: Ready) -> ServedModel:
        """The model that is ready. Raises StartupError where its text side cannot be loaded here."""

    async def stop(self, *, at_once: bool) -> bool:
        """Ends the engine, in the middle of what it does where it takes long or `at_once`; False if a part still runs."""


class AsyncEngine:
    """Owns the host and the streams. All methods belong to the event loop's thread."""

    def __init__(
        self,
        host: EngineHost,
        *,
        on_records: Callable[[EngineRecords], None] = lambda _: None,
        max_num_queued_reqs: int = 1024,
        stall_timeout_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.progress = StartupProgress(clock)
        self.snapshot = EngineSnapshot()
        self.state = EngineState.LOADING
        self.failure: OctavoError | None = None
        """Why the engine is dead."""
        self.loaded: ServedModel | None = None
        self.num_accepted = 0
        self.on_submit: Callable[[RequestStream], None] | None = None
        """Told of each accepted stream, in the task that submits it."""
        self._host = host
        self._on_records = on_records
        self._max_queued = max_num_queued_reqs
        self._stall_timeout_s = stall_timeout_s
        self._clock = clock
        self._streams: dict[str, RequestStream] = {}
        self._num_submitted = 0
        self._num_taken = 0
        self._num_sent = 0
        self._num_answered = 0
        self._beat_s = clock()
        self._changed = asyncio.Event()
        self._getting_ready: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to load; call once, in a running loop."""
        self._host.start(self._on_event)

    async def wait_until(self, *states: EngineState) -> EngineState:
        """Sleeps until the engine is in one of `states`."""
        while self.state not in states:
            self._changed.clear()
            await self._changed.wait()
        return self.state

    @property
    def num_unfinished(self) -> int:
        """Requests that were accepted and have not ended."""
        return len(self._streams)

    @property
    def is_healthy(self) -> bool:
        """False when the engine is dead or stuck: work is there, but for too long no step has ended."""
        if self.state is EngineState.LOADING:
            return self.progress.idle_s() < self._stall_timeout_s
        if self.state is not EngineState.READY:
            return False
        return self._is_idle or self._clock() - self._beat_s < self._stall_timeout_s

    async def watch(self, *, tick_s: float = WATCH_TICK_S, grace_s: float = STUCK_GRACE_S) -> None:
        """Gives an engine up that stays stuck. Counts turns and not time, which jumps while a machine is suspended."""
        stuck_s = 0.0
        while stuck_s <= grace_s:
            await asyncio.sleep(tick_s)
            is_stuck = not self.is_healthy and self.state in (EngineState.LOADING, EngineState.READY)
            stuck_s = stuck_s + tick_s if is_stuck else 0.0
        what = "no step has ended" if self.state is EngineState.READY else "loading has not moved"
        self._die(EngineStuckError(f"the engine is stuck: {what} for more than {self._stall_timeout_s:g} s"))

    def submit(self, requests: Sequence[Request]) -> RequestStream:
        """Hands one client's checked requests to the engine, all or none.

        Raises:
            EngineDeadError: it takes nothing any more.
            InvalidRequestError: it asks for more outputs than may ever wait, or holds a value that is none.
            QueueFullError: too many wait already.
        """
        if self.state is not EngineState.READY:
            raise EngineDeadError("the engine has ended; the server is about to restart, try again")
        stream = RequestStream(requests)
        if stream.num_outputs > self._max_queued + self.snapshot.max_num_seqs:
            raise InvalidRequestError(
                f"prompts times n are {stream.num_outputs:,} outputs, more than may run and wait here "
                f"({self._max_queued + self.snapshot.max_num_seqs:,}); send fewer at once, or raise --max-num-queued-reqs",
                param="n",
            )
        waiting = self._num_waiting()
        if waiting + stream.num_outputs > self._max_queued + self._num_free_places():
            raise QueueFullError(
                f"{waiting} requests wait already, --max-num-queued-reqs is {self._max_queued}; try again later"
            )
        was_idle = self._is_idle
        try:
            self._send([Add(request=request) for request in requests])
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidRequestError(f"the request holds a value that the engine cannot take: {error}") from error
        if was_idle:
            # The clock of being stuck starts here.
            self._beat_s = self._clock()
        self._num_submitted += stream.num_outputs
        self.num_accepted += len(requests)
        self._streams.update(dict.fromkeys([request.request_id for request in requests], stream))
        if self.on_submit is not None:
            self.on_submit(stream)
        return stream

    def abort(self, stream: RequestStream) -> None:
        """Ends requests that nobody reads any more; harmless where they have ended."""
        running = [item.request_id for item in stream.requests if self._streams.pop(item.request_id, None) is not None]
        if running and self.state is EngineState.READY:
            self._send([Abort(request_id=request_id) for request_id in running])

    def fail_all(self, message: str) -> None:
        """Ends every request with an error; its client is told `message`."""
        for stream in set(self._streams.values()):
            self.abort(stream)
            stream.fail(message)

    async def aclose(self, *, at_once: bool = False) -> bool:
        """Ends the engine; False if a part of it still runs. What loads, or should end at once, is not waited for."""
        self.fail_all("the server ended")
        stopped = await self._host.stop(at_once=at_once or self.state is EngineState.LOADING)
        if self._getting_ready is not None:
            await asyncio.wait([self._getting_ready])
        if self.state is not EngineState.DEAD:
            self._enter(EngineState.STOPPED)
        return stopped

    @property
    def _is_idle(self) -> bool:
        """Whether the engine owes nothing. An answer to an abort counts: clients that leave a stuck engine, as all do in
        the end, must not make it look well.
        """
        return not self._streams and self._num_answered == self._num_sent

    def _send(self, commands: Sequence[Command]) -> None:
        self._host.send(commands)
        self._num_sent += len(commands)

    def _num_waiting(self) -> int:
        """Outputs that wait, those included that the engine has not yet taken."""
        return self.snapshot.num_waiting + self._num_submitted - self._num_taken

    def _num_free_places(self) -> int:
        """Outputs that could start at once; 0 while the engine itself lets some wait."""
        snapshot = self.snapshot
        return 0 if snapshot.num_waiting else max(0, snapshot.max_num_seqs - snapshot.num_running)

    def _enter(self, state: EngineState) -> None:
        self.state = state
        self._changed.set()

    def _on_event(self, event: Event) -> None:
        match event:
            case Stepped():
                self._on_step(event)
            case Progressed():
                self.progress.follow(event)
            case Ready():
                self._getting_ready = asyncio.get_running_loop().create_task(self._get_ready(event))
            case Died():
                self._die(
                    EngineDeadError(event.message)
                    if event.reason is None
                    else StartupError(event.reason, event.message)
                )

    async def _get_ready(self, ready: Ready) -> None:
        try:
            model = await self._host.served_model(ready)
        except OctavoError as error:
            self._die(error)
            return
        if self.state is not EngineState.LOADING:
            return
        self.loaded = model
        self.snapshot = ready.snapshot
        self.progress.enter("ready")
        self._enter(EngineState.READY)

    def _on_step(self, stepped: Stepped) -> None:
        self._beat_s = self._clock()
        self.snapshot = stepped.snapshot
        self._num_taken = stepped.num_taken
        self._num_answered = stepped.num_commands
        self._on_records(stepped.records)
        for delta in stepped.deltas:
            stream = self._streams.get(delta.request_id)
            if stream is not None:
                stream.push(delta)
                if stream.is_finished:
                    self._release(stream)

    def _release(self, stream: RequestStream) -> None:
        for request in stream.requests:
            self._streams.pop(request.request_id, None)

    def _die(self, error: OctavoError) -> None:
        if self.state in (EngineState.DEAD, EngineState.STOPPED):
            return
        self.failure = error
        self.snapshot = EngineSnapshot()
        self.progress.enter("failed", str(error))
        self._enter(EngineState.DEAD)
        for stream in self._streams.values():
            stream.fail("the engine died; the server restarts, try again")
        self._streams.clear()
