"""What commands print on. Where nobody's screen bounds it nothing is cut or wrapped, so that a pipe gets whole lines.

What a cluster's strangers wrote (a termination message, a log line) cannot steer the terminal: its control characters
are left out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from .printable import printable

PIPE_WIDTH = 10_000


class Terminal(Console):
    """Standard output."""

    def __init__(self) -> None:
        is_bound = sys.stdout.isatty() or "COLUMNS" in os.environ
        super().__init__(highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if is_bound else PIPE_WIDTH)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
