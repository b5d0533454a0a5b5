"""Kubernetes Quantity values: `0.85` is "850m", `1000` is "1k".

Canonical as `resource.Quantity` prints it (DecimalSI): the largest suffix that leaves a whole number. Rounded to
thousandths, the finest that an HPA reads.
"""

from __future__ import annotations

from decimal import Decimal

_SUFFIXES = ("m", "", "k", "M", "G", "T", "P", "E")


def format_quantity(value: float) -> str:
    """A finite number as a Quantity.

    Raises:
        OverflowError: it is infinite or at least 1e18, more than a Quantity holds in thousandths.
        ValueError: it is NaN.
    """
    thousandths = int((Decimal(repr(value)) * 1000).to_integral_value()) if abs(value) < 1e18 else _refuse(value)
    exponent = 0
    while thousandths and thousandths % 1000 == 0 and exponent < len(_SUFFIXES) - 1:
        thousandths //= 1000
        exponent += 1
    return f"{thousandths}{_SUFFIXES[exponent] if thousandths else ''}"


def _refuse(value: float) -> int:
    if value != value:
        raise ValueError("NaN is no quantity")
    raise OverflowError(f"{value} is no quantity")
