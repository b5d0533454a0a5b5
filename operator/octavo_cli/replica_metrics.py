"""A replica's load and speed, from what its `/metrics` says at two moments."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

TTFT = "vllm:time_to_first_token_seconds"
WINDOW_S = 30.0
"""Speeds are means over about so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """One answer of `/metrics`."""

    at_s: float
    values: Mapping[str, float]
    """Sums over labels."""
    first_token: Mapping[float, float]
    """Upper bound in seconds → requests up to it, since the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What `top` shows of one replica; None is not known (yet)."""

    pressure: float | None = None
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    tokens_per_s: float | None = None
    first_token_s: float | None = None
    """95th percentile."""
    hit_ratio: float | None = None


class Window:
    """Owns the last scrapes of one replica."""

    def __init__(self) -> None:
        self._scrapes: deque[Scrape] = deque()

    def add(self, scrape: Scrape) -> Measured:
        """What is known now."""
        if self._scrapes and scrape.values.get(_TOKENS, 0.0) < self._scrapes[-1].values.get(_TOKENS, 0.0):
            # Counters that fell belong to a server that started anew.
            self._scrapes.clear()
        self._scrapes.append(scrape)
        while len(self._scrapes) > 2 and scrape.at_s - self._scrapes[1].at_s >= WINDOW_S:
            self._scrapes.popleft()
        return measure(self._scrapes[0], scrape)


_TOKENS = "vllm:generation_tokens_total"


def read_scrape(text: str, at_s: float) -> Scrape:
    from prometheus_client.parser import text_string_to_metric_families

    values: dict[str, float] = {}
    first_token: dict[float, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"{TTFT}_bucket":
                bound = float(sample.labels["le"])
                first_token[bound] = first_token.get(bound, 0.0) + sample.value
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return Scrape(at_s=at_s, values=values, first_token=first_token)


def measure(before: Scrape, now: Scrape) -> Measured:
    seconds = now.at_s - before.at_s

    def grown(name: str) -> float:
        return now.values.get(name, 0.0) - before.values.get(name, 0.0)

    asked = grown("vllm:prefix_cache_queries_total")
    return Measured(
        pressure=now.values.get("octavo_kv_pressure_ratio"),
        running=now.values.get("vllm:num_requests_running"),
        waiting=now.values.get("vllm:num_requests_waiting"),
        kv_usage=now.values.get("vllm:kv_cache_usage_perc"),
        tokens_per_s=grown(_TOKENS) / seconds if seconds > 0 else None,
        first_token_s=quantile(
            0.95, {bound: count - before.first_token.get(bound, 0.0) for bound, count in now.first_token.items()}
        ),
        hit_ratio=grown("vllm:prefix_cache_hits_total") / asked if asked > 0 else None,
    )


def quantile(part: float, buckets: Mapping[float, float]) -> float | None:
    """As Prometheus' histogram_quantile: linear within a bucket; None where nothing was observed."""
    bounds = sorted(buckets)
    if not bounds or not buckets[bounds[-1]] > 0:
        return None
    rank = part * buckets[bounds[-1]]
    below, low = 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= rank:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (rank - below) / (count - below) if count > below else bound
        below, low = count, bound
    return low
