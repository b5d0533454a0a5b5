"""What the ranks of one model say to each other in the middle of a step: sums, parts put together, rank 0's tensors.

All ranks make the same calls in the same order; one that does not leaves the others waiting. Results are the same on
every rank to the last bit, so that ranks never part. No group of torch's global ones is made: two models in one process
do not know each other.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch

TIMEOUT = timedelta(hours=1)
"""Of one call. Longer than any step: that a step takes too long is the engine's to judge, and a rank that is gone is
noticed at once, by its closed connections."""


class Communicator(Protocol):
    """One rank's way to the others."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int:
        """Ranks in all; with one, every method leaves its tensor as it is."""

    def all_reduce(self, x: torch.Tensor) -> None:
        """Replaces x (any shape, contiguous) by the sum of all ranks' x, in place, in its dtype."""

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """x: [num_rows, part], the same shape on each rank -> at rank 0 [num_rows, size * part], by rank; elsewhere x."""

    def broadcast(self, x: torch.Tensor) -> None:
        """Replaces x (any shape, contiguous) by rank 0's x, in place."""


class SingleRank:
    """A model that is not dealt out."""

    rank = 0
    size = 1

    def all_reduce(self, x: torch.Tensor) -> None:
        """As Communicator."""

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """As Communicator."""
        return x

    def broadcast(self, x: torch.Tensor) -> None:
        """As Communicator."""


class TorchDistributed:
    """Over torch.distributed: gloo between CPUs, NCCL between GPUs. Owns the connections."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        # A torch Backend, whose stubs name none of its calls.
        self._group: Any = None

    def connect(self, meeting: Path, device: torch.device) -> None:
        """Returns once all ranks have called it; `meeting` is a file that does not exist yet, the same for all.

        Raises:
            RuntimeError: a rank is gone, or did not come in time.
        """
        self._group = (_gloo if device.type == "cpu" else _nccl)(meeting, self.rank, self.size)

    def all_reduce(self, x: torch.Tensor) -> None:
        """As Communicator."""
        self._connected.allreduce([x]).wait()

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """As Communicator."""
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else []
        self._connected.gather(parts, x, 0).wait()
        return torch.cat(parts, dim=-1) if parts else x

    def broadcast(self, x: torch.Tensor) -> None:
        """As Communicator."""
        self._connected.broadcast(x, 0).wait()

    def abort(self) -> None:
        """Lets go of a call that waits for a rank that is gone; from any thread. Nothing can be said after it."""
        if self._group is not None:
            self._group.abort()

    @property
    def _connected(self) -> Any:
        assert self._group is not None, "connect comes first"
        return self._group


def _gloo(meeting: Path, rank: int, size: int) -> Any:
    from torch import distributed

    backend: Any = distributed.ProcessGroupGloo
    options = backend._Options()
    # All ranks are on this machine, and nobody else has anything to say here.
    options._devices = [backend.create_device(hostname="127.0.0.1")]
    options._timeout = TIMEOUT
    return backend(_store(meeting, size), rank, size, options)


def _nccl(meeting: Path, rank: int, size: int) -> Any:
    from torch import distributed

    backend: Any = distributed.ProcessGroupNCCL
    options = backend.Options()
    options._timeout = TIMEOUT
    return backend(_store(meeting, size), rank, size, options)


def _store(meeting: Path, size: int) -> Any:
    from torch import distributed

    make: Any = getattr(distributed, "FileStore")  # noqa: B009  # torch's stubs do not export it
    return make(str(meeting), size)
