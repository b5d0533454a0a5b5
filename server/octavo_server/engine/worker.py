"""The engine's own process: `python -m octavo_server.engine.worker FD PARENT_PID`, started by EngineProcess alone.

One thread does everything but prepare for the first grammar: between two steps it reads what commands are there and
writes what the socket takes. A parent that does not read holds nothing up: what waits for it is joined, and so no longer
than the outputs themselves.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import select
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

from octavo_server.engine.engine_loop import IDLE_S, run_engine
from octavo_server.engine.frames import FrameReader, Setup, encode_frame
from octavo_server.engine.messages import Stop, add_event
from octavo_server.logs import set_up_logging

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo_server.engine.build import LoadedEngine
    from octavo_server.engine.messages import Command, Event
    from octavo_server.engine.startup import StartupProgress

READ_BYTES = 2**20
FLUSH_TIMEOUT_S = 5.0
_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> int:
    """Serves the parent until it is told to stop, or the parent is gone; 1 where the engine died."""
    end_with_parent(int(argv[1]))
    # Signals to the whole group, such as Ctrl-C's, are the parent's to answer: it lets what runs finish.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    channel = SocketChannel(socket.socket(fileno=int(argv[0])))
    setup = channel.receive_setup()
    if setup is None:
        return 0
    set_up_logging(setup.log_level)
    build = _named(setup.build)

    def build_and_prepare(progress: StartupProgress) -> LoadedEngine:
        loaded: LoadedEngine = build(setup.config, progress)
        # Up to a second of work that no stream should wait for, and that many servers never need.
        threading.Thread(target=loaded.engine.vocabulary.grammars.warm_up, name="octavo-grammar", daemon=True).start()
        return loaded

    lived = run_engine(build_and_prepare, channel)
    channel.flush(timeout_s=FLUSH_TIMEOUT_S)
    return 0 if lived else 1


def end_with_parent(parent_pid: int) -> None:
    """Has the kernel kill this process when the one that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            # It ended before we could ask.
            raise SystemExit(1)


class SocketChannel:
    """Owns the socket, frames that have come in part, and events that could not leave yet."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        end.set_inheritable(False)
        self._socket = end
        self._reader = FrameReader()
        self._events: list[Event] = []
        self._unsent = memoryview(b"")
        self._is_closed = False

    def receive_setup(self) -> Setup | None:
        """The first message; None where the parent is gone already."""
        commands: list[Any] = []
        while not commands:
            commands = self.receive(wait=True)
        return commands[0] if isinstance(commands[0], Setup) else None

    def receive(self, *, wait: bool) -> list[Command]:
        """As Channel; a parent that is gone is a Stop."""
        commands: list[Command] = []
        while not self._is_closed:
            if not self._poll(IDLE_S if wait and not commands else 0.0):
                return commands
            commands += self._read()
        return [*commands, Stop()]

    def post(self, event: Event) -> None:
        """As Channel."""
        add_event(self._events, event)
        self._send()

    def flush(self, *, timeout_s: float) -> None:
        """Waits, so long at most, until everything has left."""
        while self._has_unsent and not self._is_closed:
            if not select.select([], [self._socket], [], timeout_s)[1]:
                return
            self._send()

    @property
    def _has_unsent(self) -> bool:
        return bool(self._unsent) or bool(self._events)

    def _poll(self, timeout_s: float) -> bool:
        """Waits for commands, sending meanwhile what could not leave before; whether there are some."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._has_unsent else 0))
        found = poll.poll(timeout_s * 1000)
        state = found[0][1] if found else 0
        if state & select.POLLOUT:
            self._send()
        return bool(state & (select.POLLIN | select.POLLHUP | select.POLLERR))

    def _read(self) -> list[Any]:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        self._is_closed = not data
        return self._reader.feed(data)

    def _send(self) -> None:
        while self._has_unsent and not self._is_closed:
            if not self._unsent:
                self._unsent = memoryview(encode_frame(self._events.pop(0)))
            try:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            except BlockingIOError:
                return
            except OSError:
                self._is_closed = True


def _named(name: str) -> Callable[..., Any]:
    """The function MODULE:FUNCTION."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


if __name__ == "__main__":
    status = main(sys.argv[1:])
    logging.shutdown()
    sys.stderr.flush()
    # The interpreter would wait for, or crash in, threads that are inside a kernel; nothing here needs an orderly end.
    os._exit(status)
