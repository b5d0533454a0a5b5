"""Goodput: of the requests that ended, those fast enough for what was promised (a service level objective)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from octavo_server.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from octavo_server.bench.client import Timing

_SECONDS: dict[str, Callable[[Timing], float | None]] = {
    "ttft": lambda timing: timing.ttft_s,
    "tpot": lambda timing: timing.tpot_s,
    "e2e": lambda timing: timing.e2e_s,
    # vLLM's spelling
    "e2el": lambda timing: timing.e2e_s,
}


def read_slo(pairs: Sequence[str]) -> dict[str, float]:
    """`["ttft:500", "tpot:50"]` to milliseconds by name.

    Raises:
        ConfigError: another name, or no time.
    """
    slo = {}
    for pair in pairs:
        name, _, text = pair.partition(":")
        try:
            limit_ms = float(text)
        except ValueError:
            limit_ms = 0.0
        if name not in _SECONDS or not 0 < limit_ms < math.inf:
            raise ConfigError(f"--goodput {pair!r} must be one of ttft:MS, tpot:MS, e2e:MS, such as ttft:500")
        slo[name] = limit_ms
    return slo


def keeps(timing: Timing, slo: Mapping[str, float]) -> bool:
    """Whether the request ended well and within every limit; a time that there is not (one token has no gap) is kept."""
    if not timing.is_good:
        return False
    found = ((_SECONDS[name](timing), limit_ms) for name, limit_ms in slo.items())
    return all(seconds is None or 1000 * seconds <= limit_ms for seconds, limit_ms in found)
