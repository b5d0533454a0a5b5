"""The table of `octavo top` and `kubectl octavo top`: one line a replica, live on a terminal."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .errors import CliError
from .replica_metrics import Measured, Window, read_scrape

HEADINGS = ("MODEL", "REPLICA", "PRESSURE", "RUNNING", "WAITING", "KV", "TOK/S", "TTFT p95", "PREFIX HITS", "NOTE")

NUMBERS = HEADINGS[2:9]

MIN_TABLE_WIDTH = 100
"""Columns of a terminal; the numbers take 65, and on a narrower one each replica has lines of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One replica at one moment: the text of its `/metrics`, or why there is none."""

    model: str
    name: str
    metrics: str = ""
    note: str = ""


Look = Callable[[], Sequence[Replica]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="SECONDS", help="between two looks (%(default)s)"
    )
    parser.add_argument(
        "--count", type=int, default=None, metavar="N", help="tables to show (default: until Ctrl-C; 1 in a pipe)"
    )


class TopView:
    """Owns what was seen of each replica before."""

    def __init__(self, look: Look, clock: Callable[[], float] = time.monotonic) -> None:
        self._look = look
        self._clock = clock
        self._windows: dict[tuple[str, str], Window] = {}

    def table(self) -> TopTable:
        """Looks once."""
        replicas, measured = [], {}
        for replica in self._look():
            key = (replica.model, replica.name)
            if replica.metrics:
                try:
                    scrape = read_scrape(replica.metrics, self._clock())
                except (ValueError, KeyError, IndexError):
                    replica = replace(replica, note="its /metrics is none of a server")
                else:
                    measured[key] = self._windows.setdefault(key, Window()).add(scrape)
            replicas.append(replica)
        keys = {(replica.model, replica.name) for replica in replicas}
        self._windows = {key: window for key, window in self._windows.items() if key in keys}
        return TopTable(replicas, measured)


def show(
    view: TopView, given: argparse.Namespace, console: Console, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Speeds need two looks, so the first table comes after one interval."""
    if given.interval <= 0:
        raise CliError(f"--interval is {given.interval:g}, it must be greater than 0 seconds")
    count = given.count if given.count is not None else 0 if console.is_terminal else 1
    view.table()
    if not console.is_terminal:
        for _ in range(max(1, count)):
            sleep(given.interval)
            console.print(view.table())
        return 0
    with Live(console=console, auto_refresh=False) as live:
        shown = 0
        while not count or shown < count:
            sleep(given.interval)
            live.update(view.table(), refresh=True)
            shown += 1
    return 0


@dataclass(frozen=True, slots=True)
class TopTable:
    """What is shown, as a table where the terminal is wide enough."""

    replicas: Sequence[Replica]
    measured: Mapping[tuple[str, str], Measured]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        draw = top_table if options.max_width >= MIN_TABLE_WIDTH else top_list
        yield draw(self.replicas, self.measured)


def top_table(replicas: Sequence[Replica], measured: Mapping[tuple[str, str], Measured]) -> Table:
    """Pure; replicas by model and name."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in HEADINGS:
        # Of a narrow terminal names and notes take more lines; a number is never cut for them.
        is_number = heading in NUMBERS
        table.add_column(heading, no_wrap=is_number, overflow="fold", justify="right" if is_number else "left")
    for replica, numbers in _rows(replicas, measured):
        table.add_row(replica.model, replica.name, *numbers, Text(replica.note, style="yellow"))
    return table


def top_list(replicas: Sequence[Replica], measured: Mapping[tuple[str, str], Measured]) -> Group:
    """Pure; the same, each number beside its heading."""
    lines: list[RenderableType] = []
    for replica, numbers in _rows(replicas, measured):
        lines += [_folded(replica.model, "bold"), _folded(replica.name)]
        pairs = zip(NUMBERS, numbers, strict=True)
        lines.append(Columns([Text.assemble(heading, " ", number) for heading, number in pairs], padding=(0, 2)))
        if replica.note:
            lines.append(_folded(replica.note, "yellow"))
    return Group(*lines)


def _folded(text: str, style: str = "") -> Text:
    return Text(text, style=style, overflow="fold", no_wrap=False)


def _rows(
    replicas: Sequence[Replica], measured: Mapping[tuple[str, str], Measured]
) -> Iterator[tuple[Replica, tuple[Text, ...]]]:
    """Each replica with what belongs under `NUMBERS`."""
    for replica in sorted(replicas, key=lambda each: (each.model, each.name)):
        found = measured.get((replica.model, replica.name), Measured())
        yield (
            replica,
            (
                Text(_number(found.pressure, "{:.2f}"), style=_pressure_colour(found.pressure)),
                Text(_number(found.running, "{:.0f}")),
                Text(_number(found.waiting, "{:.0f}"), style="yellow" if found.waiting else ""),
                Text(_number(found.kv_usage, "{:.0%}")),
                Text(_number(found.tokens_per_s, "{:.1f}")),
                Text(_number(found.first_token_s, "{:.2f} s")),
                Text(_number(found.hit_ratio, "{:.0%}")),
            ),
        )


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _pressure_colour(pressure: float | None) -> str:
    if pressure is None:
        return ""
    return "red" if pressure > 1 else "yellow" if pressure > 0.8 else "green"
