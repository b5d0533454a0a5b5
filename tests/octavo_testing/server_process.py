"""`octavo serve` as a process of its own, as a kubelet sees it: its log, its answers, its end."""

from __future__ import annotations

import json
import os
import queue
import re
import select
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from octavo_testing.server import NAME

START_S = 120.0
"""Generous, for a machine that does other things too; what is promised is checked by what the process itself logs."""


A_LONG_STREAM = {
    "model": NAME,
    "prompt": "The quick",
    "max_tokens": 480,
    "stream": True,
    "ignore_eos": True,
    "temperature": 0,
}


class Process:
    """`octavo serve` as a child, its log read line by line."""

    def __init__(self, *argv: str, log: Path | None = None) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        env |= {"OCTAVO_TERMINATION_LOG": str(log)} if log else {}
        self.started_s = time.monotonic()
        self.child = subprocess.Popen(
            [sys.executable, "-m", "octavo_server", "serve", *argv], stderr=subprocess.PIPE, text=True, env=env
        )
        self.lines: list[str] = []
        self._incoming: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def until(self, pattern: str) -> re.Match[str]:
        """Waits for a log line."""
        deadline = time.monotonic() + START_S
        while True:
            line = self._incoming.get(timeout=max(0.1, deadline - time.monotonic()))
            assert line is not None, "\n".join(self.lines)
            if match := re.search(pattern, line):
                return match

    def wait(self) -> int:
        status = self.child.wait(timeout=START_S)
        self._reader.join()
        return status

    @property
    def engine_pid(self) -> int:
        """Of the engine's process, where it has one of its own."""
        pid = self.child.pid
        (found,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(found)

    @property
    def rank_pids(self) -> list[int]:
        """Of the ranks beyond the first, whatever started them."""
        return [pid for pid in descendants(self.child.pid) if b"distributed.follower" in _command_line(pid)]

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.wait()
        assert self.child.stderr is not None
        self.child.stderr.close()

    def _read(self) -> None:
        assert self.child.stderr is not None
        for line in self.child.stderr:
            self.lines.append(line.rstrip())
            self._incoming.put(line)
        self._incoming.put(None)


def descendants(pid: int) -> list[int]:
    """Of all threads of a process, and of those."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(found) for task in tasks for found in task.read_text().split()]
    return children + [found for child in children for found in descendants(child)]


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@contextmanager
def serving(*argv: str, log: Path | None = None) -> Iterator[Process]:
    process = Process(*argv, log=log)
    try:
        yield process
    finally:
        process.close()


@contextmanager
def ready(model: Path, *argv: str, log: Path | None = None) -> Iterator[tuple[Process, str]]:
    blocks = ("--num-gpu-blocks-override", "200")
    with serving(
        str(model), "--host", "127.0.0.1", "--port", "0", "--served-model-name", NAME, *blocks, *argv, log=log
    ) as process:
        port = process.until(r"listening on 127\.0\.0\.1:(\d+)")[1]
        process.until(r"ready after .* idle memory of the serving process [\d.,]+ [MG]iB")
        yield process, f"http://127.0.0.1:{port}"


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=START_S)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has collected it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until_gone(pid: int) -> None:
    """Returns at once where it has ended, and fails where it does not end."""
    try:
        with open_pidfd(pid) as descriptor:
            assert select.select([descriptor], [], [], 10)[0], f"process {pid} was left behind"
    except ProcessLookupError:
        return
    assert is_gone(pid)


@contextmanager
def open_pidfd(pid: int) -> Iterator[int]:
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=START_S) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
