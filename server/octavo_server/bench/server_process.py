"""`octavo serve` as a child process: its port, its memory, its end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from octavo_server.errors import OctavoError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

START_S = 300.0
POLL_S = 0.02


class ServerStartError(OctavoError):
    """`octavo serve` ended before it was ready, or took too long."""


class ServerProcess:
    """A server on a free loopback port; its log is kept."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str | None] | None = None) -> None:
        """Starts it; `env` are variables beside this process's own, None takes one of those out."""
        path = os.pathsep.join(path for path in sys.path if path)
        whole = {**os.environ, "PYTHONPATH": path, **(env or {})}
        variables = {name: value for name, value in whole.items() if value is not None}
        command = [sys.executable, "-m", "octavo_server", "serve", *argv, "--host", "127.0.0.1", "--port", "0"]
        self.started_s = time.monotonic()
        self.listening_s: float | None = None
        """When the port was open, by the clock of `started_s`."""
        self.child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables)
        self.lines: list[str] = []
        self._port: int | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def errors(self) -> list[str]:
        """Lines of the log that a healthy server does not write."""
        return [line for line in self.lines if re.search(r"\b(ERROR|CRITICAL|Traceback|Exception)\b", line)]

    def wait_until_ready(self) -> None:
        """Returns once requests are served.

        Raises:
            ServerStartError: it ended, or took too long; with the log's end.
        """
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.child.poll() is None:
            if self._port is not None and _is_ok(self.url + "/ready"):
                return
            time.sleep(POLL_S)
        raise ServerStartError("the server did not become ready:\n" + "\n".join(self.lines[-20:]))

    def pids(self) -> list[int]:
        """Of the process and all its descendants."""
        return _family(self.child.pid)

    def rss_bytes(self) -> int:
        """Resident memory of all of them."""
        return sum(_rss_bytes(pid) for pid in self.pids())

    def stop(self) -> int:
        """Drains and ends it; the exit status."""
        if self.child.poll() is None:
            self.child.terminate()
        try:
            status = self.child.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.child.kill()
            status = self.child.wait()
        self._reader.join(timeout=10)
        assert self.child.stderr is not None
        self.child.stderr.close()
        return status

    def _read(self) -> None:
        assert self.child.stderr is not None
        for line in self.child.stderr:
            self.lines.append(line.rstrip())
            del self.lines[:-1000]
            if self._port is None and (found := re.search(r"listening on 127\.0\.0\.1:(\d+)", line)):
                self.listening_s = time.monotonic()
                self._port = int(found[1])


@contextmanager
def serving(argv: Sequence[str]) -> Iterator[ServerProcess]:
    """A ready server, ended on the way out."""
    server = ServerProcess(argv)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def _is_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return int(response.status) == 200
    except (urllib.error.URLError, OSError):
        return False


def _family(pid: int) -> list[int]:
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [item for child in children.read_text(encoding="ascii").split() for item in _family(int(child))]
        except OSError:
            continue
    return found


def _rss_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/statm").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(status.split()[1]) * os.sysconf("SC_PAGE_SIZE")
