"""looptime asks for the event loop around synchronous tests too, and asyncio then makes one that nobody closes.

Having set one once, if only None, keeps asyncio from doing so.
"""

from __future__ import annotations

import asyncio

asyncio.set_event_loop(None)
