"""The fake engine in a process of its own, and the test's way to pull at it there: a line of JSON, an answer, a line …"""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo_server.config import EngineConfig
from octavo_server.engine.build import LoadedEngine
from octavo_server.engine.engine_process import EngineProcess
from octavo_server.engine.startup import StartupProgress
from octavo_server.tokenizer.tokenizer import load_tokenizer
from octavo_testing.fake_engine import FakeParts, fake_engine

CONTROL = "OCTAVO_TEST_CONTROL"
"""Variable with the path of the socket at which the test listens."""


def build(config: EngineConfig, progress: StartupProgress) -> LoadedEngine:
    """Runs in the engine's process."""
    progress.locate(Path(config.model))
    parts = fake_engine(
        load_tokenizer(config.model), blocks=config.num_gpu_blocks_override or 200, seqs=config.max_num_seqs or 8
    )
    control = socket.socket(socket.AF_UNIX)
    control.connect(os.environ[CONTROL])
    threading.Thread(target=_obey, args=(control, parts), daemon=True).start()
    return parts.loaded


def _obey(control: socket.socket, parts: FakeParts) -> None:
    runner = parts.runner
    actions: dict[str, Callable[..., object]] = {
        "hold": runner.gate.clear,
        "open": runner.open,
        "let_through": runner.let_through,
        "breaks": lambda: setattr(runner, "breaks", True),
        "break_engine": parts.break_engine,
        "break_steps": parts.break_steps,
        "break_tokens": parts.break_tokens,
        "exit": lambda: os._exit(7),
    }
    with control, control.makefile("rw") as lines:
        for line in lines:
            name, *arguments = json.loads(line)
            actions[name](*arguments)
            lines.write("done\n")
            lines.flush()


class RemoteGate:
    """As the gate of a GatedRunner."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell

    def clear(self) -> None:
        self._tell("hold")

    def set(self) -> None:
        self._tell("open")


class RemoteRunner:
    """As GatedRunner, for the parts that tests pull at."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self.gate = RemoteGate(tell)

    def let_through(self, num_steps: int) -> None:
        self._tell("let_through", num_steps)

    def open(self) -> None:
        self._tell("open")

    @property
    def breaks(self) -> bool:
        raise NotImplementedError

    @breaks.setter
    def breaks(self, _value: bool) -> None:
        self._tell("breaks")


@dataclass(slots=True, kw_only=True)
class RemoteEngine:
    """A host that is not started yet, and what a test may pull at once it is."""

    host: EngineProcess
    listener: socket.socket
    _lines: Any = None

    @property
    def runner(self) -> RemoteRunner:
        return RemoteRunner(self.tell)

    def break_engine(self) -> None:
        self.tell("break_engine")

    def break_steps(self, *numbers: int) -> None:
        self.tell("break_steps", *numbers)

    def break_tokens(self, *token_ids: int) -> None:
        self.tell("break_tokens", *token_ids)

    def exit(self) -> None:
        self.tell("exit")

    def kill(self) -> None:
        pid = self.host.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def tell(self, *command: object) -> None:
        """Waits until it is done; a process that is gone does nothing more."""
        try:
            if self._lines is None:
                connection, _ = self.listener.accept()
                with connection:
                    self._lines = connection.makefile("rw")
            self._lines.write(json.dumps(command) + "\n")
            self._lines.flush()
            self._lines.readline()
        except (BrokenPipeError, ConnectionResetError):
            return

    def close(self) -> None:
        if self._lines is not None:
            try:
                self._lines.close()
            except BrokenPipeError:
                return


@contextmanager
def remote_engine(tokenizer_folder: Path, *, blocks: int = 200, seqs: int = 8) -> Iterator[RemoteEngine]:
    """The fake engine, to be started in a process of its own."""
    config = EngineConfig(
        model=str(tokenizer_folder), num_gpu_blocks_override=blocks, max_num_seqs=seqs, generation_config="octavo"
    )
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder) / "control"
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(30)
        os.environ[CONTROL] = str(path)
        remote = RemoteEngine(
            host=EngineProcess(config, log_level="warning", build="octavo_testing.remote_engine:build"),
            listener=listener,
        )
        try:
            yield remote
        finally:
            remote.close()
            del os.environ[CONTROL]
