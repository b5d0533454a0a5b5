"""The engine on a thread of this process: for a CPU, whose cores two processes would only fight over."""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING

from octavo_server.engine.engine_loop import IDLE_S, run_engine
from octavo_server.engine.messages import Stop, add_event

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo_server.engine.build import LoadedEngine
    from octavo_server.engine.engine_loop import Build
    from octavo_server.engine.messages import Command, Event, Ready
    from octavo_server.engine.served_model import ServedModel
    from octavo_server.engine.startup import StartupProgress

JOIN_TIMEOUT_S = 10.0


class EngineThread:
    """Owns the thread. One call of the loop a step carries over what the step gave; while the loop is late, one call
    carries several steps.
    """

    def __init__(self, build: Build) -> None:
        self._build = build
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._lock = threading.Lock()
        # What waits for the loop; guarded by the lock.
        self._events: list[Event] = []
        self._loaded: LoadedEngine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: Callable[[Event], None] | None = None
        # A daemon: a thread that hangs in a kernel must not keep a dead server alive.
        self._thread = threading.Thread(target=self._run, name="octavo-engine", daemon=True)

    def start(self, listener: Callable[[Event], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._thread.start()

    def send(self, commands: Sequence[Command]) -> None:
        for command in commands:
            self._inbox.put(command)

    async def served_model(self, _ready: Ready) -> ServedModel:
        assert self._loaded is not None, "it said that it was ready"
        return self._loaded.served

    async def stop(self, *, at_once: bool) -> bool:
        self._inbox.put(Stop())
        if self._thread.ident is None:
            return True
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, 0 if at_once else JOIN_TIMEOUT_S)
        return not self._thread.is_alive()

    # What follows the thread does.

    def receive(self, *, wait: bool) -> list[Command]:
        """As Channel."""
        commands: list[Command] = []
        try:
            commands.append(self._inbox.get(block=wait, timeout=IDLE_S))
            while True:
                commands.append(self._inbox.get(block=False))
        except queue.Empty:
            return commands

    def post(self, event: Event) -> None:
        """As Channel."""
        assert self._loop is not None
        with self._lock:
            is_first = not self._events
            add_event(self._events, event)
        # The loop is closed when the process ends before the thread does; then nobody listens.
        if is_first and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver)

    def _run(self) -> None:
        run_engine(self._build_and_keep, self)

    def _build_and_keep(self, progress: StartupProgress) -> LoadedEngine:
        self._loaded = self._build(progress)
        return self._loaded

    # By the loop.

    def _deliver(self) -> None:
        assert self._listener is not None
        with self._lock:
            events, self._events = self._events, []
        for event in events:
            self._listener(event)
