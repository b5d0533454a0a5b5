"""The last words of a process: one JSON line that the kubelet, and so the operator, reads."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

DEFAULT_PATH = "/dev/termination-log"
VARIABLE = "OCTAVO_TERMINATION_LOG"
MAX_MESSAGE_CHARS = 1024
"""The kubelet reads 4 KiB in all."""


def write_termination_log(reason: str, message: str, env: Mapping[str, str] | None = None) -> None:
    """Writes `{reason, message}` where a kubelet looks: to the file that the variable names, else the default if it exists."""
    given = (os.environ if env is None else env).get(VARIABLE)
    path = Path(given or DEFAULT_PATH)
    if not given and not path.exists():
        return
    try:
        path.write_text(json.dumps({"reason": reason, "message": message[:MAX_MESSAGE_CHARS]}) + "\n", encoding="utf-8")
    except OSError as error:
        logger.warning("cannot write the termination log %s: %s", path, error.strerror)
