"""Python 3.11 makes an event loop when pytest-asyncio asks whether there is one, and nobody closes it."""

from __future__ import annotations

import asyncio

# Said once that there is none, asking makes none; its ResourceWarning would fail whichever test runs at the next gc.
asyncio.set_event_loop(None)
