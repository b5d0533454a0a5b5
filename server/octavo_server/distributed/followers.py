"""The processes of the ranks beyond the first, seen from rank 0: started, told what to do, watched, ended.

One that ends before it is told to, for whatever reason, makes the model unusable: the reason is kept, a call that waits
for that rank is let go of, and everything after raises.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import weakref
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from octavo_server.distributed.orders import encode
from octavo_server.errors import EngineDeadError, StartupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from octavo_server.distributed.follower import Setup
    from octavo_server.distributed.orders import Order

END_S = 5.0
"""For a process that was told to end, or has said that it does."""
REASON_S = 2.0
"""From a failed call to the news of which rank is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One rank, and our end of the socket between us."""

    rank: int
    child: subprocess.Popen[bytes]
    channel: socket.socket


@dataclass(slots=True)
class _News:
    """What the watching thread has learnt; guarded by `changed`."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    overhead_bytes: dict[int, int] = field(default_factory=dict)
    """Of each rank that has loaded."""
    failure: StartupError | None = None
    is_closing: bool = False


class Followers:
    """Owns the processes."""

    def __init__(self, setups: Sequence[Setup], folder: str, abort: Callable[[], None]) -> None:
        """Starts one process a setup.

        Args:
            setups: of the ranks from 1 on.
            folder: where ranks meet; removed in the end.
            abort: lets go of a call that waits for another rank, from any thread.
        """
        self._news = _News()
        self._processes = [start(setup) for setup in setups]
        # Also when nobody holds this any more, and when the interpreter ends.
        self._end = weakref.finalize(self, _end, self._processes, self._news, folder)
        threading.Thread(
            target=_watch, args=(self._processes, self._news, abort), name="octavo-ranks", daemon=True
        ).start()

    @property
    def pids(self) -> list[int]:
        """By rank, from 1 on."""
        return [process.child.pid for process in self._processes]

    def wait_until_loaded(self) -> int:
        """Returns the most that a rank's GPU holds beside its weights, in bytes.

        Raises:
            StartupError: one of them cannot load its part.
        """
        news = self._news
        with news.changed:
            news.changed.wait_for(lambda: news.failure is not None or len(news.overhead_bytes) == len(self._processes))
            if news.failure is not None:
                raise StartupError(news.failure.reason, str(news.failure))
            return max(news.overhead_bytes.values())

    def send(self, order: Order) -> None:
        """To all of them."""
        data = encode(order)
        for process in self._processes:
            process.channel.sendall(data)

    def check(self) -> None:
        """Raises EngineDeadError where one of them is gone."""
        with self._news.changed:
            failure = self._news.failure
        if failure is not None:
            raise EngineDeadError(str(failure))

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Around calls that all ranks make together: where rank 0 does not come to their end, the others wait for ever.

        Raises:
            EngineDeadError: it did not, or one of the others is gone.
        """
        self.check()
        try:
            yield
        except BaseException as error:
            news = self._news
            with news.changed:
                if isinstance(error, (RuntimeError, OSError)):
                    news.changed.wait_for(lambda: news.failure is not None, REASON_S)
                # Ranks that are told to wait no longer cannot be led on.
                news.failure = news.failure or StartupError(
                    "EngineCrashed", f"rank 0 was interrupted in a step of all ranks by {type(error).__name__}: {error}"
                )
            if not isinstance(error, Exception):
                raise
            raise EngineDeadError(str(news.failure)) from error

    def close(self) -> None:
        """Ends them, whatever they do; harmless twice."""
        self._end()


def start(setup: Setup) -> Process:
    """A rank that loads, and its line to us."""
    ours, theirs = socket.socketpair()
    with theirs:
        child = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "octavo_server.distributed.follower",
                str(theirs.fileno()),
                json.dumps(asdict(setup)),
            ],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            # So that it imports what we import, however we came to it.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    return Process(rank=setup.rank, child=child, channel=ours)


def _watch(processes: Sequence[Process], news: _News, abort: Callable[[], None]) -> None:
    """Reads what ranks say until one has failed or all are being ended."""
    lines = {process.channel.fileno(): b"" for process in processes}
    by_number = {process.channel.fileno(): process for process in processes}
    poll = select.poll()
    for number in by_number:
        poll.register(number, select.POLLIN)
    while True:
        for number, _ in poll.poll():
            process = by_number[number]
            data = _read(process.channel)
            *whole, lines[number] = (lines[number] + data).split(b"\n")
            failure = next(filter(None, [_take(json.loads(line), process.rank, news) for line in whole]), None)
            if failure is None and not data:
                failure = StartupError("EngineCrashed", _how_it_ended(process))
            if failure is not None:
                with news.changed:
                    news.failure = news.failure or failure
                    news.changed.notify_all()
                    if news.is_closing:
                        return
                abort()
                return


def _take(said: dict[str, Any], rank: int, news: _News) -> StartupError | None:
    if said["what"] == "failed":
        return StartupError(said["reason"], f"rank {rank}: {said['message']}")
    with news.changed:
        news.overhead_bytes[rank] = said["overhead_bytes"]
        news.changed.notify_all()
    return None


def _read(channel: socket.socket) -> bytes:
    try:
        return channel.recv(2**16)
    except OSError:
        return b""


def _how_it_ended(process: Process) -> str:
    who = f"rank {process.rank}, process {process.child.pid},"
    try:
        status = process.child.wait(END_S)
    except subprocess.TimeoutExpired:
        return f"{who} has closed its connection"
    if status >= 0:
        return f"{who} ended by itself, with status {status}; the log holds the reason"
    hint = "; the machine, or its memory limit, may have run out of memory" if status == -signal.SIGKILL else ""
    return f"{who} was ended by {signal.Signals(-status).name}{hint}"


def _end(processes: Sequence[Process], news: _News, folder: str) -> None:
    with news.changed:
        news.is_closing = True
        news.failure = news.failure or StartupError("EngineCrashed", "the engine was closed")
    for process in processes:
        _hang_up(process.channel)
    for process in processes:
        try:
            process.child.wait(END_S)
        except subprocess.TimeoutExpired:
            process.child.kill()
            process.child.wait()
        process.channel.close()
    shutil.rmtree(folder, ignore_errors=True)


def _hang_up(channel: socket.socket) -> None:
    try:
        channel.shutdown(socket.SHUT_RDWR)
    except OSError:
        # The other end was faster.
        return
