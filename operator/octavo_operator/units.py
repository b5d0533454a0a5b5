"""Amounts as people read them in the status."""

from __future__ import annotations


def bytes_text(done: int, total: int, between: str = "/") -> str:
    """Such as "3.1/14.9 GB"."""
    unit, name, digits = (1e6, "MB", 0) if total < 1e9 else (1e9, "GB", 1)
    return f"{done / unit:.{digits}f}{between}{total / unit:.{digits}f} {name}"


def seconds_text(seconds: float) -> str:
    """Such as "42 s", "7 min" or "3 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def two_digits(number: float) -> int:
    """Rounded to two digits that count, so that a status is not written for less."""
    return int(float(f"{number:.1e}"))
