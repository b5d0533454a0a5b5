"""Arithmetic of launches, and the one fact about Triton that wrappers must know: whether it interprets."""

from __future__ import annotations

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

    The interpreter multiplies bfloat16 matrices by their bits, silently: kernels with tl.dot widen to float32 then.
    """
    return type(kernel).__name__ == "InterpretedFunction"
