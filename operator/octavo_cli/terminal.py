"""What commands print on. Where nobody's screen bounds it nothing is cut or wrapped, so that a pipe gets whole lines.

What a cluster's strangers wrote (a termination message, a log line) cannot steer the terminal: its control characters
are left out.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

PIPE_WIDTH = 10_000
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Terminal(Console):
    """Standard output."""

    def __init__(self) -> None:
        is_bound = sys.stdout.isatty() or "COLUMNS" in os.environ
        super().__init__(highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if is_bound else PIPE_WIDTH)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def printable(text: str) -> str:
    """Without control characters, which have no width, so that no layout changes."""
    return _CONTROL.sub("", text)
