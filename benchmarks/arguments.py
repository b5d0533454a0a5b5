"""Types of the commands' flags: what cannot be measured is refused by argparse, with the value and the remedy."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """A whole number, 1 or more."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 1 or more")
    return value


def counts(text: str) -> list[int]:
    """Whole numbers, 1 or more, between commas."""
    return [count(part) for part in text.split(",")]


def amount(text: str) -> float:
    """A number above 0 and below a year of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 4e7:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return value
