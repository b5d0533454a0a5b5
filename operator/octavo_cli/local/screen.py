"""What a person sees of local mode: a live table on a terminal, one line per change anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .deployment import Row

HEADINGS = ("MODEL", "READY", "REPLICAS", "REASON", "RESTARTS", "AGE", "MESSAGE")
SAME_REASON_EVERY_S = 10.0
"""Plain lines tell progress under one reason this often."""


class Screen(Protocol):
    def __enter__(self) -> Screen: ...

    def __exit__(self, *_: object) -> None: ...

    def say(self, line: str) -> None: ...

    def show(self, rows: Sequence[Row]) -> None: ...


def make_screen(console: Console, clock: Callable[[], float] = time.monotonic) -> Screen:
    return LiveScreen(console, clock) if console.is_terminal else PlainScreen(console, clock)


class LiveScreen:
    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._began = clock()
        self._rows: Sequence[Row] = ()
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=False)

    def __enter__(self) -> LiveScreen:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def say(self, line: str) -> None:
        self._live.console.print(Text(line))

    def show(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def _render(self) -> Group:
        return Group(status_table(self._rows, self._clock() - self._began))


class PlainScreen:
    """Prints a model's line when its reason or readiness changes, and its progress now and then."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._told: dict[str, tuple[object, float]] = {}

    def __enter__(self) -> PlainScreen:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def say(self, line: str) -> None:
        self._print(line)

    def show(self, rows: Sequence[Row]) -> None:
        now = self._clock()
        for row in rows:
            news = (row.ready, row.num_ready, row.reason, row.restarts)
            told, at = self._told.get(row.model, (None, 0.0))
            if news != told or (not row.ready and now - at >= SAME_REASON_EVERY_S):
                self._told[row.model] = (news, now)
                self._print(f"{row.model}: {row.reason}: {row.message}")

    def _print(self, line: str) -> None:
        # Straight to the file: no colours, no wrapping at a width that a pipe does not have.
        self._console.file.write(line + "\n")
        self._console.file.flush()


def status_table(rows: Sequence[Row], age_s: float) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, no_wrap=heading != "MESSAGE", overflow="fold")
    for row in rows:
        colour = "green" if row.ready else "yellow"
        table.add_row(
            row.model,
            Text(str(row.ready), style=colour),
            f"{row.num_ready}/{row.replicas}",
            row.reason,
            str(row.restarts),
            short_age(age_s),
            Text(row.message),
        )
    return table


def short_age(seconds: float) -> str:
    """As kubectl writes it: 45s, 7m, 3h, 2d."""
    for unit, size, until in (("s", 1, 120), ("m", 60, 7200), ("h", 3600, 172_800)):
        if seconds < until:
            return f"{int(seconds / size)}{unit}"
    return f"{int(seconds / 86_400)}d"
