"""The engine on a thread of its own, and its asyncio side.

The thread loads the model, then steps while there is work and sleeps in its inbox while there is none. One
`call_soon_threadsafe` a step carries that step's outputs over; a stream keeps what its reader has not yet taken, so a
slow reader holds nobody and costs no more memory than its own output.

Every submitted request ends in exactly one terminal delta for each of its outputs, whatever happens to the engine.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from octavo_server.engine.engine import FAILED_MESSAGE, OutputDelta
from octavo_server.engine.request import FinishReason
from octavo_server.engine.startup import StartupProgress
from octavo_server.errors import EngineDeadError, InvalidRequestError, OctavoError, QueueFullError, StartupError
from octavo_server.metrics import EngineSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo_server.engine.build import LoadedEngine
    from octavo_server.engine.engine import Engine
    from octavo_server.engine.request import Request
    from octavo_server.engine.served_model import ServedModel

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 10.0


class EngineState(StrEnum):
    """LOADING → READY → STOPPED, or DEAD from either."""

    LOADING = "loading"
    READY = "ready"
    DEAD = "dead"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class _Add:
    request: Request


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


class _Stop:
    """Ends the thread."""


_Command = _Add | _Abort | _Stop


class RequestStream:
    """The outputs of one client's requests (a completion may bring several prompts) as they come. One reader."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = tuple(requests)
        self._pending: list[OutputDelta] = []
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
        """What came since the last call, at least one delta; empty once all outputs have ended and were read."""
        while not self._pending:
            if self.is_finished:
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        deltas, self._pending = self._pending, []
        return deltas

    def push(self, delta: OutputDelta) -> None:
        """Takes a delta; what comes after an output's last one is dropped."""
        output = (delta.request_id, delta.index)
        if output not in self._open:
            return
        if delta.finish_reason is not None:
            self._open.discard(output)
        self._pending.append(delta)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, message: str) -> None:
        """Ends every output that is still open."""
        for request_id, index in sorted(self._open):
            self.push(OutputDelta(request_id=request_id, index=index, finish_reason=FinishReason.ERROR, error=message))


class AsyncEngine:
    """Owns the thread and the streams. All methods belong to the event loop's thread."""

    def __init__(
        self,
        build: Callable[[StartupProgress], LoadedEngine],
        *,
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
        self._build = build
        self._max_queued = max_num_queued_reqs
        self._stall_timeout_s = stall_timeout_s
        self._clock = clock
        self._inbox: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._streams: dict[str, RequestStream] = {}
        self._num_submitted = 0
        self._num_taken = 0
        self._beat_s = clock()
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to load; call once, in a running loop."""
        self._loop = asyncio.get_running_loop()
        # A daemon: a thread that hangs in a kernel must not keep a dead server alive.
        self._thread = threading.Thread(target=self._run, name="octavo-engine", daemon=True)
        self._thread.start()

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
        return not self._streams or self._clock() - self._beat_s < self._stall_timeout_s

    def submit(self, requests: Sequence[Request]) -> RequestStream:
        """Hands one client's checked requests to the engine, all or none.

        Raises:
            EngineDeadError: it takes nothing any more.
            InvalidRequestError: it asks for more outputs than may ever wait.
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
        if not self._streams:
            # Idle until now: the clock of being stuck starts here.
            self._beat_s = self._clock()
        self._num_submitted += stream.num_outputs
        for request in requests:
            self._streams[request.request_id] = stream
            self.num_accepted += 1
            self._inbox.put(_Add(request))
        return stream

    def abort(self, stream: RequestStream) -> None:
        """Ends requests that nobody reads any more; harmless where they have ended."""
        for request in stream.requests:
            if self._streams.pop(request.request_id, None) is not None:
                self._inbox.put(_Abort(request.request_id))

    def fail_all(self, message: str) -> None:
        """Ends every request with an error; its client is told `message`."""
        for stream in set(self._streams.values()):
            self.abort(stream)
            stream.fail(message)

    async def aclose(self) -> bool:
        """Stops the thread; False if it did not end in time and still runs. A thread that loads is not waited for."""
        self._inbox.put(_Stop())
        self.fail_all("the server ended")
        if self._thread is None:
            return True
        timeout_s = 0 if self.state is EngineState.LOADING else JOIN_TIMEOUT_S
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, timeout_s)
        if self.state is not EngineState.DEAD:
            self._enter(EngineState.STOPPED)
        return not self._thread.is_alive()

    def _num_waiting(self) -> int:
        """Outputs that wait, those included that the thread has not yet taken from its inbox."""
        return self.snapshot.num_waiting + self._num_submitted - self._num_taken

    def _num_free_places(self) -> int:
        """Outputs that could start at once; 0 while the engine itself lets some wait."""
        snapshot = self.snapshot
        return 0 if snapshot.num_waiting else max(0, snapshot.max_num_seqs - snapshot.num_running)

    def _enter(self, state: EngineState) -> None:
        self.state = state
        self._changed.set()

    # What follows the thread does; it touches asyncio's side by `_post` alone.

    def _run(self) -> None:
        try:
            loaded = self._build(self.progress)
        except StartupError as error:
            self._post(self._on_death, error)
            return
        except Exception:
            logger.exception("the model could not be loaded")
            failure = StartupError("EngineCrashed", "the model could not be loaded; the log holds the reason")
            self._post(self._on_death, failure)
            return
        self._post(self._on_ready, loaded, loaded.engine.snapshot())
        try:
            self._serve(loaded.engine)
        except Exception as error:
            logger.exception("the engine died")
            self._post(self._on_death, EngineDeadError(f"the engine died: {type(error).__name__}"))

    def _serve(self, engine: Engine) -> None:
        num_taken = 0
        while True:
            rejected: list[OutputDelta] = []
            command = self._next_command(wait=not engine.has_work)
            while command is not None:
                if isinstance(command, _Stop):
                    return
                if isinstance(command, _Add):
                    num_taken += command.request.params.n
                    rejected += _add(engine, command.request)
                else:
                    engine.abort(command.request_id)
                command = self._next_command(wait=False)
            deltas = engine.step() if engine.has_work else []
            self._post(self._on_step, rejected + deltas, engine.snapshot(), num_taken)

    def _next_command(self, *, wait: bool) -> _Command | None:
        try:
            return self._inbox.get(block=wait)
        except queue.Empty:
            return None

    def _post(self, callback: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        # The loop is closed when the process ends before the thread does; then nobody listens.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *args)

    # Callbacks of the thread, run by the loop.

    def _on_ready(self, loaded: LoadedEngine, snapshot: EngineSnapshot) -> None:
        self.loaded = loaded.served
        self.snapshot = snapshot
        self.progress.enter("ready")
        self._enter(EngineState.READY)

    def _on_step(self, deltas: list[OutputDelta], snapshot: EngineSnapshot, num_taken: int) -> None:
        self._beat_s = self._clock()
        self.snapshot = snapshot
        self._num_taken = num_taken
        for delta in deltas:
            stream = self._streams.get(delta.request_id)
            if stream is not None:
                stream.push(delta)
                if stream.is_finished:
                    self._release(stream)

    def _release(self, stream: RequestStream) -> None:
        for request in stream.requests:
            self._streams.pop(request.request_id, None)

    def _on_death(self, error: OctavoError) -> None:
        self.failure = error
        self.snapshot = EngineSnapshot()
        self.progress.enter("failed", str(error))
        self._enter(EngineState.DEAD)
        for stream in self._streams.values():
            stream.fail("the engine died; the server restarts, try again")
        self._streams.clear()


def _add(engine: Engine, request: Request) -> list[OutputDelta]:
    """Adds the request; where that fails, the terminal deltas that say so."""
    try:
        engine.add_request(request)
    except OctavoError as error:
        message = str(error)
    except Exception:
        logger.exception("a request could not be added", extra={"request_id": request.request_id})
        message = FAILED_MESSAGE
    else:
        return []
    return [
        OutputDelta(request_id=request.request_id, index=index, finish_reason=FinishReason.ERROR, error=message)
        for index in range(request.params.n)
    ]
