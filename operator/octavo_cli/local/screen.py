"""What a person sees of local mode: a live table on a terminal, one line per change anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from octavo_operator.api import reasons

from .deployment import Row

HEADINGS = ("MODEL", "READY", "REPLICAS", "REASON", "RESTARTS", "AGE", "MESSAGE")
FIRST_PROGRESS_S, MAX_PROGRESS_S = 1.0, 10.0
"""Plain lines tell progress under one reason after the first time, then after twice the last one, up to the second."""


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


@dataclass(frozen=True, slots=True)
class _Told:
    """The last line of a model."""

    news: object
    message: str
    at: float
    pause_s: float


class PlainScreen:
    """Prints a model's line when its reason or readiness changes, and its progress ever more seldom in between."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._told: dict[str, _Told] = {}

    def __enter__(self) -> PlainScreen:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def say(self, line: str) -> None:
        self._print(line)

    def show(self, rows: Sequence[Row]) -> None:
        now = self._clock()
        for row in rows:
            # A drain takes readiness away by itself; that is no second piece of news.
            news = (
                row.reason if row.reason == reasons.DRAINING else (row.ready, row.num_ready, row.reason, row.restarts)
            )
            told = self._told.get(row.model)
            if told is None or news != told.news:
                pause_s = MAX_PROGRESS_S if row.reason == reasons.DRAINING else FIRST_PROGRESS_S
            elif not row.ready and now - told.at >= (MAX_PROGRESS_S if row.message == told.message else told.pause_s):
                pause_s = min(MAX_PROGRESS_S, 2 * told.pause_s)
            else:
                continue
            self._told[row.model] = _Told(news, row.message, now, pause_s)
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
