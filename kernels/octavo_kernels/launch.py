"""Arithmetic of launches, and the facts about Triton and the chip that wrappers must know."""

from __future__ import annotations

from functools import cache

import torch

MIN_DOT = 16
"""tl.dot takes no dimension smaller than this."""

LOG2_E = 1.4426950408889634
"""exp(x) = exp2(x * LOG2_E), and the hardware has exp2."""


def ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)


def next_power_of_2(value: int) -> int:
    return 1 << (value - 1).bit_length() if value > 1 else 1


def is_interpreted(kernel: object) -> bool:
    """True when TRITON_INTERPRET was set as the kernel was decorated.

    The interpreter multiplies bfloat16 matrices by their bits, silently: kernels with tl.dot widen those to float32 then.
    """
    return type(kernel).__name__ == "InterpretedFunction"


def is_amd() -> bool:
    return torch.version.hip is not None


@cache
def nvidia_capability() -> tuple[int, int]:
    """Compute capability of the current GPU; (0, 0) on AMD's, and where there is none."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() and not is_amd() else (0, 0)


def has_wide_tiles() -> bool:
    """Whether matrix units read operands from shared memory, of which a block may have 227 KiB: NVIDIA's 9.0 and 10."""
    return nvidia_capability()[0] in (9, 10)


def can_overlap() -> bool:
    """Whether a kernel may be placed before the one before it has ended."""
    return nvidia_capability() >= (9, 0)


def dot_precision(dtype: torch.dtype, kernel: object) -> str:
    """How tl.dot multiplies float32; other dtypes do not look at it.

    NVIDIA's matrix units have no float32: three products in tf32 lose about as little, while "ieee" unrolls into scalar
    operations and spills hundreds of registers. AMD's have it.
    """
    return "tf32x3" if dtype == torch.float32 and not is_amd() and not is_interpreted(kernel) else "ieee"
