"""A line of the log says which request it is about."""

from __future__ import annotations

import logging
import sys

import pytest

from octavo_server.logs import FieldsFormatter


def a_record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("octavo_server.x").makeRecord(
        "octavo_server.x", logging.INFO, "x.py", 1, message, args, None, extra=extra
    )


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (a_record("it %s", "began"), "INFO it began"),
        (a_record("a request failed", request_id="r-1"), "INFO a request failed request_id=r-1"),
        (a_record("two", request_id="r", num_sequences=3), "INFO two num_sequences=3 request_id=r"),
    ],
)
def test_extra_fields_follow_the_message(record: logging.LogRecord, line: str) -> None:
    assert FieldsFormatter("%(levelname)s %(message)s").format(record) == line


def test_a_traceback_follows_the_line() -> None:
    record = a_record("a step failed", num_sequences=2)
    try:
        raise ValueError("boom")
    except ValueError:
        record.exc_info = sys.exc_info()

    lines = FieldsFormatter("%(message)s").format(record).splitlines()

    assert (lines[0], lines[-1]) == ("a step failed num_sequences=2", "ValueError: boom")
