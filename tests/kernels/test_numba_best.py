"""The likeliest token of rows whose logits come in tiles of 16, to threads that share the work; numpy's argmax says which."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from octavo_kernels.numba_best import BEST_BYTES, best_of, choose_best, keep_best


@numba.njit
def _keep_tiles(logits, vocab, thread, tiles, best):  # type: ignore[no-untyped-def]
    for row in range(logits.shape[0]):
        place = best.ctypes.data + (thread * logits.shape[0] + row) * BEST_BYTES
        for tile in tiles:
            values = logits.ctypes.data + (row * logits.shape[1] + tile * 16) * 4
            keep_best(values, tile * 16, vocab - tile * 16, place)


def likeliest(logits: NDArray[np.float32], vocab: int, threads: int = 2, order: int = 1) -> list[int]:
    """logits: [num_rows, whole tiles]; threads take turns at the tiles, of which each does the last first where order is -1."""
    best, tokens = best_of(threads, logits.shape[0]), np.zeros(logits.shape[0], np.int64)
    for thread in range(threads):
        _keep_tiles(logits, vocab, thread, np.arange(thread, logits.shape[1] // 16, threads)[::order].copy(), best)
    choose_best(best, tokens)
    found: list[int] = tokens.tolist()
    return found


def random(rows: int, columns: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((rows, columns), np.float32)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_it_is_the_largest(threads: int) -> None:
    logits = random(9, 160)

    assert likeliest(logits, 160, threads) == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("order", [1, -1])
def test_of_equal_ones_it_is_the_lowest_id(order: int) -> None:
    """Few values, so that each stands in many lanes, tiles and threads; a thread may do a later tile before an earlier."""
    logits = np.random.default_rng(1).integers(-3, 3, (50, 96)).astype(np.float32)

    assert likeliest(logits, 96, 3, order) == logits.argmax(axis=1).tolist()


def test_what_fills_the_last_tile_is_no_token() -> None:
    logits = random(4, 48) - 10
    logits[:, 35:] = 0.0

    assert likeliest(logits, 35) == logits[:, :35].argmax(axis=1).tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_has_none(value: float) -> None:
    logits = random(3, 64)
    logits[1, 40] = value

    found = likeliest(logits, 64)

    assert found == [logits[0].argmax(), -1, logits[2].argmax()]


def test_a_thread_that_never_came_changes_nothing() -> None:
    logits, tokens = random(2, 32), np.zeros(2, np.int64)
    best = best_of(3, 2)
    _keep_tiles(logits, 32, 1, np.arange(2), best)

    choose_best(best, tokens)

    assert tokens.tolist() == logits.argmax(axis=1).tolist()
