"""Requirements that are told to whoever breaks them: the tensor's name, what was given and what is needed."""

from __future__ import annotations

from typing import TypeVar

import torch

from octavo_kernels.errors import KernelError

_Handle = TypeVar("_Handle")

FLOATING = (torch.float32, torch.bfloat16, torch.float16)


def require_rank(name: str, tensor: torch.Tensor, rank: int) -> None:
    if tensor.ndim != rank:
        raise KernelError(f"{name} has shape {list(tensor.shape)}, must have {rank} dimensions")


def require_shape(name: str, tensor: torch.Tensor, shape: tuple[int | None, ...]) -> None:
    """None stands for any size."""
    # Asked several times a launch, of which a prefill has hundreds: tuples are compared in C.
    actual = tensor.shape
    if actual == shape:
        return
    if len(actual) != len(shape) or actual != tuple(map(_or_own, shape, actual)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise KernelError(f"{name} has shape {list(actual)}, must be [{wanted}]")


def _or_own(wanted: int | None, actual: int) -> int:
    return actual if wanted is None else wanted


def require_dtype(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise KernelError(f"{name} is {tensor.dtype}, must be {dtype}")


def require_floating(name: str, dtype: torch.dtype) -> None:
    if dtype not in FLOATING:
        raise KernelError(f"{name} is {dtype}, must be one of {', '.join(str(d) for d in FLOATING)}")


def require_last_contiguous(name: str, tensor: torch.Tensor) -> None:
    if tensor.stride(-1) != 1 and tensor.shape[-1] != 1:
        raise KernelError(f"{name} has stride {tensor.stride(-1)} in its last dimension, must be 1 (contiguous)")


def require_device(name: str, tensor: torch.Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise KernelError(f"{name} is on {tensor.device}, must be on {device}")


def require_own(handle: object, kind: type[_Handle]) -> _Handle:
    """A handle that this backend made itself; another's would be read as garbage."""
    if not isinstance(handle, kind):
        raise KernelError(f"handle is a {type(handle).__name__}, this backend reads its own {kind.__name__} only")
    return handle


def require_float32(name: str, tensor: torch.Tensor) -> None:
    """A float32 tensor on the CPU, for kernels that know nothing else."""
    require_dtype(name, tensor, torch.float32)
    require_device(name, tensor, torch.device("cpu"))
