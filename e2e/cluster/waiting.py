"""Wait for the cluster to come to a state, and say what it was instead when it does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from e2e.cluster.errors import ClusterError, CommandError

Found = TypeVar("Found")
_POLL_S = 0.25


def wait_until(
    probe: Callable[[], Found], what: str, *, limit_s: float, describe: Callable[[], str] | None = None
) -> Found:
    """The first true value of `probe`; raises ClusterError with `describe()` when there is none in `limit_s` seconds.

    A CommandError of the probe counts as "not yet": an object that is to come is absent at first.
    """
    deadline = time.monotonic() + limit_s
    failure = ""
    while True:
        try:
            if found := probe():
                return found
            failure = ""
        except CommandError as error:
            failure = f"; the last attempt: {error}"
        if time.monotonic() > deadline:
            state = f": {describe()}" if describe else ""
            raise ClusterError(f"after {limit_s:.0f} s it does not hold that {what}{state}{failure}")
        time.sleep(_POLL_S)
