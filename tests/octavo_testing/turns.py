"""Ranks of one model as threads of this process, of which one computes at a time: what they say goes from hand to hand.

For kernels under Triton's interpreter, which serves one thread alone, and for one GPU, on which NCCL takes one rank.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

PATIENCE_S = 120.0
"""A rank that failed must not let the others wait for ever."""


class Table:
    """Where the ranks meet. Owns whose turn it is."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.turn = threading.Lock()
        self.parts: list[torch.Tensor] = [torch.empty(0)] * size
        self._all_here = threading.Barrier(size)

    def meet(self) -> None:
        self._all_here.wait(PATIENCE_S)

    def leave(self) -> None:
        """The others need wait no longer."""
        self._all_here.abort()


class TurnTaker:
    """A `Communicator` at a table."""

    def __init__(self, rank: int, table: Table) -> None:
        self.rank = rank
        self.size = table.size
        self._table = table

    def all_reduce(self, x: torch.Tensor) -> None:
        x.copy_(torch.stack(self._put(x)).sum(0))

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        parts = self._put(x)
        return torch.cat(parts, dim=-1) if self.rank == 0 else x

    def broadcast(self, x: torch.Tensor) -> None:
        x.copy_(self._put(x)[0])

    def _put(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Each rank's x."""
        self._table.parts[self.rank] = x.clone()
        self._table.turn.release()
        self._table.meet()
        parts = list(self._table.parts)
        self._table.meet()
        self._table.turn.acquire()
        return parts


def on_turns(size: int, compute: Callable[[TurnTaker], torch.Tensor]) -> torch.Tensor:
    """What `compute` gives on rank 0, being called on each."""
    table = Table(size)

    def one(rank: int) -> torch.Tensor:
        with table.turn:
            try:
                return compute(TurnTaker(rank, table))
            except BaseException:
                table.leave()
                raise

    with ThreadPoolExecutor(size) as threads:
        results = list(threads.map(one, range(size)))
    return results[0]
