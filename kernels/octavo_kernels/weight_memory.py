"""Memory for weights on huge pages: one token's product reads all of them, and few large pages cost it few look-ups.

Where the system has no such pages, or none free, it is ordinary memory.
"""

from __future__ import annotations

import mmap
import threading

import numpy as np
from numpy.typing import NDArray

HUGE_PAGE = 2 << 20
"""Bytes, on x86-64 and on Arm with pages of 4 KiB."""

_CHUNK = 16 * HUGE_PAGE


class WeightMemory:
    """Gives out pieces of large mappings. A mapping stays as long as one of its pieces; what was never written to takes no memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free = np.empty(0, np.uint8)

    def take(self, num_bytes: int) -> NDArray[np.uint8]:
        """-> [num_bytes], zeros, on a boundary of 64 bytes."""
        room = -(-num_bytes // 64) * 64
        with self._lock:
            if room > self._free.size:
                self._free = _mapping(max(room, _CHUNK))
            taken, self._free = self._free[:num_bytes], self._free[room:]
        return taken


def _mapping(num_bytes: int) -> NDArray[np.uint8]:
    """Zeros from a boundary of huge pages on."""
    # Memory that processes share gets none of them.
    flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, num_bytes + HUGE_PAGE, **flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    values = np.frombuffer(memory, np.uint8)
    start = -values.ctypes.data % HUGE_PAGE
    return values[start : start + num_bytes]
