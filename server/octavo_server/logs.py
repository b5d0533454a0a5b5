"""How this package's processes log: one line a record on stderr."""

from __future__ import annotations

import logging
import sys


def set_up_logging(level: str) -> None:
    """From now on, `level` and above."""
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
