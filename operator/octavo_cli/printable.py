"""Text of strangers, such as a model or a pod, as it may reach a terminal."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Without control characters, which have no width, so that no layout changes; tabs and line ends stay."""
    return _CONTROL.sub("", text)
