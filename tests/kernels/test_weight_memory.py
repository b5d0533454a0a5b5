"""Weights lie next to each other in large mappings, each on a boundary of cache lines."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from octavo_kernels.weight_memory import HUGE_PAGE, WeightMemory

_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HAS_HUGE_PAGES = _SWITCH.is_file() and "[never]" not in _SWITCH.read_text(encoding="utf-8")


def test_pieces_are_zeros_on_boundaries_of_64_bytes_and_share_nothing() -> None:
    memory = WeightMemory()

    with ThreadPoolExecutor(max_workers=4) as pool:
        pieces = list(pool.map(memory.take, [1, 63, 64, 65, 20 * HUGE_PAGE, 20 * HUGE_PAGE, 1000] * 3))

    for number, piece in enumerate(pieces, start=1):
        assert piece.ctypes.data % 64 == 0
        assert not piece.any()
        piece[:] = number
    assert all((piece == number).all() for number, piece in enumerate(pieces, start=1))
    assert [piece.size for piece in pieces[:5]] == [1, 63, 64, 65, 20 * HUGE_PAGE]


def test_a_mapping_is_given_back_with_its_last_piece() -> None:
    memory = WeightMemory()
    first, second = memory.take(64), memory.take(64)
    base = first
    while isinstance(base.base, np.ndarray):
        base = base.base
    mapping = weakref.ref(base)

    del base, first, memory
    gc.collect()
    assert mapping() is not None
    del second
    gc.collect()

    assert mapping() is None


@pytest.mark.skipif(not HAS_HUGE_PAGES, reason="this system has no transparent huge pages")
def test_the_system_is_asked_for_huge_pages() -> None:
    piece = WeightMemory().take(4 * HUGE_PAGE)
    piece[:] = 1

    region, flags = False, ""
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(value, 16) for value in first.split("-"))
            region = start <= piece.ctypes.data < end
        elif region and first == "VmFlags:":
            flags = line
    # "hg": advised; whether a page is free just now is the system's affair.
    assert " hg" in flags
