"""How this package's processes log: one line a record on stderr, its `extra` fields behind the message."""

from __future__ import annotations

import logging
import sys

_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class FieldsFormatter(logging.Formatter):
    """Messages are constant; what differs from one to the next (`request_id=…`) follows them."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = sorted(vars(record).keys() - _OWN_FIELDS)
        return super().formatMessage(record) + "".join(f" {name}={getattr(record, name)}" for name in fields)


def set_up_logging(level: str) -> None:
    """From now on, `level` and above."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FieldsFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
