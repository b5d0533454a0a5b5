"""How far a command has come, shown to a person on stderr or to a program as JSON lines."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

INTERVAL_S = 1.0


class Bar:
    """A bar on stderr; where that is no terminal, nothing."""

    def __init__(self, unit: str, *, is_bytes: bool = False, is_shown: bool = True) -> None:
        self._unit = unit
        self._is_bytes = is_bytes
        self._is_shown = is_shown
        self._bar: Any = None

    def __enter__(self) -> Bar:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        if self._is_shown and console.is_terminal:
            counter = DownloadColumn() if self._is_bytes else MofNCompleteColumn()
            columns = (TextColumn("{task.description}"), BarColumn(), counter, TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task(self._unit, total=None)
            self._bar.start()
        return self

    def show(self, done: int, total: int) -> None:
        """From any thread."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


class JsonLines:
    """One object a second at most, and one at the end, with the fields that `/startup` has for a download."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._lock = threading.Lock()
        self._written_s = -INTERVAL_S
        self._last = (0, 0)

    def __enter__(self) -> JsonLines:
        return self

    def show(self, done: int, total: int) -> None:
        """From any thread."""
        with self._lock:
            self._last = (done, total)
            now = self._clock()
            if now - self._written_s >= INTERVAL_S:
                self._written_s = now
                self._write("downloading")

    def __exit__(self, kind: object, *_: object) -> None:
        self._write("ready" if kind is None else "failed")

    def _write(self, stage: str) -> None:
        done, total = self._last
        self._out.write(json.dumps({"stage": stage, "bytes": done, "total_bytes": total}) + "\n")
        self._out.flush()
