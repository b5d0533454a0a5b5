"""The ways between host and device within a step: arrays in, at its end one array out. Neither waits for the device.

On a CPU both are the same memory, and nothing is copied. What is in flight keeps its memory on the host: torch's
allocator of pinned memory gives a block out again only once the copies from or to it have ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


def upload(values: ArrayLike, dtype: type[np.generic], device: torch.device) -> torch.Tensor:
    """A new tensor on `device`, for kernels that are launched from now on."""
    array = torch.from_numpy(np.array(values, dtype))
    return array if device.type == "cpu" else to_device(array, device)


def to_device(array: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a tensor of the host on a device that is not a CPU."""
    return array.pin_memory().to(device, non_blocking=True)


def upload_into(target: torch.Tensor, values: NDArray[Any]) -> None:
    """Overwrites `target`, of the shape and type of `values`, for kernels that are launched from now on."""
    array = torch.from_numpy(values)
    target.copy_(array if target.device.type == "cpu" else array.pin_memory(), non_blocking=True)


class Download:
    """Tensors of one device on their way to the host, all in one copy; each of elements of 4 or 8 bytes."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._like = [(tensor.shape, tensor.dtype) for tensor in tensors]
        self._on_cpu = list(tensors) if all(tensor.device.type == "cpu" for tensor in tensors) else None
        if self._on_cpu is None:
            self._copy = HostCopy(pack(tensors))

    def wait(self) -> list[torch.Tensor]:
        """The tensors on the host, in the order given, once they have come."""
        return unpack(self._copy.wait(), self._like) if self._on_cpu is None else self._on_cpu


def pack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """-> new [num_words] int32 with the bytes of all, those of 8 bytes an element first, where alone they may lie."""
    return torch.cat([tensors[index].reshape(-1).view(torch.int32) for index in _order([t.dtype for t in tensors])])


def unpack(words: torch.Tensor, like: Sequence[tuple[torch.Size, torch.dtype]]) -> list[torch.Tensor]:
    """words: as `pack` made them of tensors of these shapes and types -> views of it, in their order."""
    found: dict[int, torch.Tensor] = {}
    start = 0
    for index in _order([dtype for _, dtype in like]):
        shape, dtype = like[index]
        stop = start + shape.numel() * dtype.itemsize // 4
        found[index] = words[start:stop].view(dtype).view(shape)
        start = stop
    return [found[index] for index in range(len(like))]


def _order(dtypes: Sequence[torch.dtype]) -> list[int]:
    return sorted(range(len(dtypes)), key=lambda index: -dtypes[index].itemsize)


class HostCopy:
    """One tensor on its way from a GPU."""

    def __init__(self, words: torch.Tensor) -> None:
        self._words = torch.empty(words.shape, dtype=words.dtype, pin_memory=True)
        self._words.copy_(words, non_blocking=True)
        self._has_come = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's stubs leave it untyped
        self._has_come.record()

    def wait(self) -> torch.Tensor:
        """The copy."""
        self._has_come.synchronize()
        return self._words
