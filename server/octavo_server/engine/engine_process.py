"""The engine in a process of its own, seen from the process that serves clients, which so never imports torch.

The child is `engine.worker` at the other end of a socket pair. It cannot outlive this process: the kernel kills it when
we end, however we end, and a closed socket ends it where the kernel does not.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from octavo_server.engine.build import load_text_side
from octavo_server.engine.frames import FrameReader, Setup, encode_frame
from octavo_server.engine.messages import Died, Progressed, Stop
from octavo_server.engine.served_model import ServedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo_server.config import EngineConfig
    from octavo_server.engine.build import TextSide
    from octavo_server.engine.messages import Command, Event, Ready

BUILD = "octavo_server.engine.build:build_server_engine"
STOP_TIMEOUT_S = 5.0
"""For the step that runs; nobody waits for what it computes."""


class EngineProcess(asyncio.Protocol):
    """Owns the child and this end of the socket."""

    def __init__(self, config: EngineConfig, *, log_level: str = "info", build: str = BUILD) -> None:
        self._config = config
        self._setup = Setup(build=build, config=config, log_level=log_level)
        self._reader = FrameReader()
        self._child: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._opening: asyncio.Task[object] | None = None
        self._text_side: asyncio.Task[TextSide] | None = None
        self._reporting: asyncio.Task[None] | None = None
        self._listener: Callable[[Event], None] | None = None
        self._has_died = False
        self._is_stopping = False

    @property
    def pid(self) -> int | None:
        """Of the child; None before `start`."""
        return None if self._child is None else self._child.pid

    def start(self, listener: Callable[[Event], None]) -> None:
        loop = asyncio.get_running_loop()
        self._listener = listener
        ours, theirs = socket.socketpair()
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "octavo_server.engine.worker", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # So that it imports what we import, however we came to it.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        except OSError as error:
            ours.close()
            loop.call_soon(self._die, f"the engine's process cannot be started: {error.strerror}")
            return
        finally:
            theirs.close()
        ours.setblocking(False)
        self._opening = loop.create_task(loop.create_unix_connection(lambda: self, sock=ours))

    def send(self, commands: Sequence[Command]) -> None:
        frames = b"".join([encode_frame(command) for command in commands])
        if self._transport is not None:
            self._transport.write(frames)

    async def served_model(self, ready: Ready) -> ServedModel:
        assert self._text_side is not None, "it told where the model lies before it was ready"
        text = await self._text_side
        return ServedModel(
            tokenizer=text.tokenizer,
            defaults=text.defaults,
            limits=ready.limits,
            vectors=text.vectors,
            grammars=text.grammars,
            resolved=ready.resolved,
        )

    async def stop(self, *, at_once: bool) -> bool:
        self._is_stopping = True
        if self._child is None:
            return True
        if self._opening is not None:
            await asyncio.wait([self._opening])
        self.send([Stop()])
        await asyncio.to_thread(self._reap, 0.0 if at_once else STOP_TIMEOUT_S)
        if self._transport is not None:
            self._transport.abort()
        rest = [task for task in (self._text_side, self._reporting) if task is not None]
        if rest:
            await asyncio.wait(rest)
        return True

    # As asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(encode_frame(self._setup))

    def data_received(self, data: bytes) -> None:
        for event in self._reader.feed(data):
            self._take(event)

    def connection_lost(self, _error: Exception | None) -> None:
        if not self._is_stopping:
            self._reporting = asyncio.get_running_loop().create_task(self._report_end())

    def _take(self, event: Event) -> None:
        if isinstance(event, Progressed) and event.location and self._text_side is None:
            # Beside the weights, which take longer.
            loading = asyncio.to_thread(load_text_side, self._config, Path(event.location))
            self._text_side = asyncio.get_running_loop().create_task(loading)
            # Where nobody comes to ask for it any more, what was wrong with it is no matter.
            self._text_side.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._has_died = self._has_died or isinstance(event, Died)
        if self._listener is not None:
            self._listener(event)

    async def _report_end(self) -> None:
        status = await asyncio.to_thread(self._reap, STOP_TIMEOUT_S)
        if not self._has_died:
            self._die(_how_it_ended(status))

    def _die(self, message: str) -> None:
        self._take(Died(message=message))

    def _reap(self, timeout_s: float) -> int:
        """Waits for the child's end, and ends it where that takes too long."""
        assert self._child is not None
        try:
            return self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"the engine's process ended by itself, with status {status}; the log holds the reason"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = "; the machine, or its memory limit, may have run out of memory" if status == -signal.SIGKILL else ""
    return f"the engine's process was ended by {name}{hint}"
