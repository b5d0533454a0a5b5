"""A part as a process of its own, ended with all that it has started when its time is over."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from time import monotonic, sleep

_POLL_S = 0.05


def run_within(command: Sequence[str], env: Mapping[str, str], limit_s: float) -> str:
    """Waits for it, `limit_s` at most, and leaves none of its children -> how it ended."""
    # A group of its own, for a signal to reach a server that it has started too.
    process = subprocess.Popen(command, env=env, start_new_session=True)
    deadline_s = monotonic() + limit_s
    try:
        while not (has_ended := _has_ended(process.pid)) and monotonic() < deadline_s:
            sleep(_POLL_S)
    finally:
        # Not yet waited for, so nobody else can have got the group's number.
        os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    if not has_ended:
        return f"ended after {limit_s:.0f} s, all that it had"
    return f"its process ended with status {status}"


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
