"""What weights and caches really take, counted tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch


def arrays(value: object) -> Iterator[tuple[int, int]]:
    """(address, bytes) of every tensor and array that a handle, a cache or weights hold, views by what they are of."""
    if isinstance(value, torch.Tensor):
        yield value.untyped_storage().data_ptr(), value.untyped_storage().nbytes()
    elif isinstance(value, np.ndarray):
        yield value.ctypes.data, value.nbytes
    elif isinstance(value, list | tuple):
        for item in value:
            yield from arrays(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from arrays(getattr(value, field.name))


def held_bytes(value: object) -> int:
    return sum(dict(arrays(value)).values())
