"""A part as a process of its own, ended with all that it has started when its time is over; and many checks at once."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from time import monotonic, sleep
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

_POLL_S = 0.05

T = TypeVar("T")


def apart(work: Callable[[str], T], names: Sequence[str], device: torch.device) -> Iterator[tuple[str, T | Exception]]:
    """`work` of each name, or what it raised, in their order.

    On a GPU each is a process of its own: they compile side by side, and one that breaks its device breaks no other's.
    """
    if device.type == "cpu":
        for name in names:
            yield name, _tried(partial(work, name))
        return
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = [pool.submit(work, name) for name in names]
        for name, future in zip(names, futures, strict=True):
            yield name, _tried(future.result)


def _tried(work: Callable[[], T]) -> T | Exception:
    try:
        return work()
    except Exception as error:  # noqa: BLE001  # whatever it is, it is this check's result
        return error


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
