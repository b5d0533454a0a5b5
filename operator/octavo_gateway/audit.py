"""The audit log: one JSON line a request, written by a thread of its own, so that a slow disk holds nobody up.

The thread looks ten times a second: being woken for each line, it would take the interpreter from the requests each time.

A line that finds the queue full, or that cannot be written, is counted and lost; requests go on.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any, TextIO

from .metrics import Metrics

logger = logging.getLogger(__name__)

STANDARD_OUTPUT = "-"
MAX_WAITING = 10_000
"""Lines that wait to be written."""
MAX_WAITING_BYTES = 64 * 2**20
MAX_BODY_BYTES = 1024 * 1024
"""Of a longer one the log has so much, as text."""
WRITE_EVERY_S = 0.1
CLOSE_WITHIN_S = 5.0


class AuditLog:
    """Owns the file and its thread; an empty path writes nothing."""

    def __init__(self, path: str, metrics: Metrics) -> None:
        self._path = path
        self._metrics = metrics
        self._waiting: deque[tuple[Mapping[str, Any], bytes]] = deque()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._file: TextIO | None = None
        self._thread: threading.Thread | None = None
        if path:
            self._thread = threading.Thread(target=self._write_for_ever, name="audit", daemon=True)
            self._thread.start()

    def write(self, entry: Mapping[str, Any], body: bytes = b"") -> None:
        """One line; `body` is the request's, valid JSON, where it shall be in there."""
        if self._thread is None:
            return
        with self._lock:
            is_full = len(self._waiting) >= MAX_WAITING or self._waiting_bytes + len(body) > MAX_WAITING_BYTES
            if not is_full:
                self._waiting_bytes += len(body)
                self._waiting.append((entry, body))
        if is_full:
            self._metrics.lost_audits.inc()

    def close(self) -> None:
        """Write what waits, for a bounded time."""
        if self._thread is not None:
            self._is_closed.set()
            self._thread.join(CLOSE_WITHIN_S)
            self._thread = None

    def _write_for_ever(self) -> None:
        while not self._is_closed.wait(WRITE_EVERY_S):
            self._write_waiting()
        self._write_waiting()
        if self._file is not None:
            self._file.close()

    def _write_waiting(self) -> None:
        with self._lock:
            waiting = list(self._waiting)
            self._waiting.clear()
            self._waiting_bytes = 0
        if not waiting:
            return
        try:
            target = self._open()
            target.write("".join(line_of(entry, body) for entry, body in waiting))
            target.flush()
        except (OSError, ValueError) as error:
            self._metrics.lost_audits.inc(len(waiting))
            logger.warning("lines of the audit log are lost", extra={"path": self._path, "why": str(error)})

    def _open(self) -> TextIO:
        """The file by its path: one that was moved away, as log rotation does, is begun anew."""
        if self._path == STANDARD_OUTPUT:
            return sys.stdout
        if self._file is not None and not _is_same(self._file, self._path):
            self._file.close()
            self._file = None
        if self._file is None:
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115  closed at the end of the thread
        return self._file


def line_of(entry: Mapping[str, Any], body: bytes) -> str:
    """As ASCII: a client's half of a surrogate pair has no UTF-8."""
    asked: dict[str, Any] = {}
    if len(body) > MAX_BODY_BYTES:
        text = body[:MAX_BODY_BYTES].decode(errors="replace")
        asked = {"request_text": text, "request_bytes": len(body)}
    elif body:
        asked = {"request": json.loads(body)}
    return json.dumps({**entry, **asked}) + "\n"


def _is_same(file: TextIO, path: str) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(file.fileno())
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
