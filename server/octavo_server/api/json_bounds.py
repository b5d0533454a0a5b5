"""How much a JSON text may hold, told before it is parsed.

Python's parser keeps the interpreter for as long as it takes, on whatever thread it runs: three million keys in 60 MB
stop every stream, and the health check, for many seconds. Text is cheap; values and keys are what costs.
"""

from __future__ import annotations

MAX_VALUES = 2**20
"""Items of all arrays and objects; as token ids 128 prompts of 8,192."""
MAX_KEYS = 2**17
"""A key takes as long as ten other values."""


def too_many(raw: bytes) -> str | None:
    """What the text holds too much of; None where it may be parsed. Text that is no JSON is counted as if it were."""
    for marks, most, what in ((b",[{", MAX_VALUES, "values"), (b":", MAX_KEYS, "keys")):
        # Most bodies hold few marks even with those that stand in strings.
        if _num_marks(raw, marks, 0, len(raw)) > most and _has_more(raw, marks, most):
            return f"the body holds more than {most:,} {what}; send fewer"
    return None


def _has_more(raw: bytes, marks: bytes, most: int) -> bool:
    """Whether more than `most` of `marks` stand outside of strings."""
    count, at = 0, 0
    while at < len(raw):
        begin = raw.find(b'"', at)
        count += _num_marks(raw, marks, at, len(raw) if begin < 0 else begin)
        if begin < 0 or count > most:
            break
        at = _end_of_string(raw, begin + 1)
    return count > most


def _num_marks(raw: bytes, marks: bytes, start: int, end: int) -> int:
    return sum(raw.count(mark, start, end) for mark in marks)


def _end_of_string(raw: bytes, start: int) -> int:
    """Behind the quote that closes the string whose text begins at `start`."""
    at = start
    while (quote := raw.find(b'"', at)) >= 0:
        before = quote
        while before > start and raw[before - 1] == ord("\\"):
            before -= 1
        if (quote - before) % 2 == 0:
            return quote + 1
        at = quote + 1
    return len(raw)
