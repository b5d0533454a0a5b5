"""Arguments of an earlier tool call, as chat templates want them.

Templates disagree: most want an object (`arguments | tojson`, `arguments.items()`), DeepSeek's add it to text. This value
is both.
"""

from __future__ import annotations

import json
from typing import Any


class CallArguments(dict[str, Any]):
    """The parsed object, which is its JSON text wherever a template adds it to text or prints it."""

    def __init__(self, values: dict[str, Any], text: str | None = None) -> None:
        """`text`: as the client sent it; None: it sent an object."""
        super().__init__(values)
        self._text = json.dumps(values, ensure_ascii=False) if text is None else text

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: object) -> str:
        return self._text + other if isinstance(other, str) else NotImplemented

    def __radd__(self, other: object) -> str:
        return other + self._text if isinstance(other, str) else NotImplemented


def parse_call_arguments(text: str) -> CallArguments | str:
    """The arguments in a client's text; the text itself where it is no JSON object, since models write such, too."""
    if not text.strip():
        return CallArguments({})
    try:
        values = json.loads(text)
        # An escape may stand for half a character, which no prompt can hold; as text it stays an escape.
        json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return text
    return CallArguments(values, text) if isinstance(values, dict) else text
