"""Which replica takes a request: prefix affinity that needs no shared state, power of two choices on KV pressure, or turns.

Pure: readings, failures and in-flight counts are told to it; randomness and time are parameters.

A request with a conversation's beginning to hash goes to the first replica of its rendezvous order that is not over the
bound, so that all gateways agree and a hot prefix spills over; any other goes to the better of two drawn at random.
A reading is up to a second old, so a replica's score is the pressure that it reported plus what was sent to it since.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from .circuit import Circuit, ejected
from .endpoints import Model, Replica, Strategy

FAILURE_PAUSE_S = 2.0
"""A replica that refused or broke is left out this long, unless its /load answers earlier."""
UNKNOWN_REQUEST_PRESSURE = 1 / 64
"""Pressure that one request is taken to add where nothing has been measured yet."""
AFFINITY_SLACK = 0.25
"""A hashed replica may carry the mean times (1 + slack) plus slack before its keys spill over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a replica's ``/load`` said."""

    pressure: float
    running: int
    waiting: int
    draining: bool = False

    @property
    def pressure_per_request(self) -> float:
        requests = self.running + self.waiting
        return self.pressure / requests if requests and self.pressure > 0 else UNKNOWN_REQUEST_PRESSURE


UNKNOWN_LOAD = Load(pressure=0.0, running=0, waiting=0)


@dataclass(slots=True)
class _State:
    load: Load = UNKNOWN_LOAD
    in_flight: int = 0
    in_flight_at_reading: int = 0
    out_until: float = 0.0
    circuit: Circuit = field(default_factory=Circuit)

    @property
    def score(self) -> float:
        sent_since = max(0, self.in_flight - self.in_flight_at_reading)
        return self.load.pressure + sent_since * self.load.pressure_per_request


class Balancer:
    """Owns what this gateway knows of each replica; ``keep_only`` bounds it to the replicas of the table."""

    def __init__(self, rng: random.Random, *, on_spill: Callable[[str], None] = lambda _: None) -> None:
        """`on_spill` is told the key of a model whose request did not go to the first replica of its order."""
        self._rng = rng
        self._on_spill = on_spill
        self._states: dict[str, _State] = {}
        self._last_turn: dict[str, str] = {}
        """The pod that had the last turn, by model key."""

    def choose(
        self, model: Model, *, now: float, affinity: str | None = None, exclude: Collection[str] = ()
    ) -> Replica | None:
        """The replica that should take the next request, or None where none can."""
        candidates = [replica for replica in self.routable(model, now=now) if replica.url not in exclude]
        if len(candidates) <= 1:
            return candidates[0] if candidates else None
        if model.strategy is Strategy.ROUND_ROBIN:
            return self._next_turn(model.key, candidates)
        if model.strategy is Strategy.PREFIX_AFFINITY and affinity is not None:
            return self._by_affinity(model.key, affinity, candidates)
        return self._better_of_two(candidates)

    def routable(self, model: Model, *, now: float) -> list[Replica]:
        ready = [replica for replica in model.replicas if replica.is_routable]
        out = self._ejected(ready, now)
        return [replica for replica in ready if replica.url not in out and self._is_in(replica.url, now)]

    @contextmanager
    def in_use(self, url: str, *, now: float = 0.0) -> Iterator[None]:
        """Count one request as in flight on a replica; the first one after an ejection is its probe."""
        state = self._state(url)
        state.in_flight += 1
        is_probe = state.circuit.is_half_open(now)
        if is_probe:
            state.circuit.is_probing = True
        try:
            yield
        finally:
            state.in_flight -= 1
            if is_probe:
                state.circuit.is_probing = False

    def report_load(self, url: str, load: Load) -> None:
        state = self._state(url)
        state.load = load
        state.in_flight_at_reading = state.in_flight
        state.out_until = 0.0

    def report_failure(self, url: str, *, now: float) -> None:
        self._state(url).out_until = now + FAILURE_PAUSE_S

    def report_answer(self, url: str) -> None:
        """It answered a request, whatever it said."""
        self._state(url).circuit.record_answer()

    def report_sick(self, url: str, *, now: float) -> float | None:
        """It failed at a request before its first byte; the seconds of its ejection, where that was once too often."""
        return self._state(url).circuit.record_failure(now)

    def in_flight(self, url: str) -> int:
        return self._states[url].in_flight if url in self._states else 0

    def score(self, url: str) -> float:
        """Pressure as last read plus an estimate of what this gateway has sent since."""
        return self._states[url].score if url in self._states else 0.0

    def keep_only(self, models: Iterable[Model]) -> None:
        """Forget replicas that have left the table."""
        models = list(models)
        urls = {replica.url for model in models for replica in model.replicas}
        keys = {model.key for model in models}
        self._last_turn = {key: pod for key, pod in self._last_turn.items() if key in keys}
        self._states = {url: state for url, state in self._states.items() if url in urls}

    def _ejected(self, ready: Sequence[Replica], now: float) -> frozenset[str]:
        circuits = {
            replica.url: self._states[replica.url].circuit
            for replica in ready
            if replica.url in self._states and self._states[replica.url].circuit.ejected_until is not None
        }
        return ejected(circuits, num_replicas=len(ready), now=now) if circuits else frozenset()

    def _is_in(self, url: str, now: float) -> bool:
        state = self._states.get(url)
        return state is None or (now >= state.out_until and not state.load.draining)

    def _state(self, url: str) -> _State:
        return self._states.setdefault(url, _State())

    def _better_of_two(self, candidates: Sequence[Replica]) -> Replica:
        first, second = self._rng.sample(candidates, 2)
        return min(first, second, key=self._rank)

    def _rank(self, replica: Replica) -> tuple[float, int]:
        return self.score(replica.url), self.in_flight(replica.url)

    def _next_turn(self, key: str, candidates: Sequence[Replica]) -> Replica:
        ordered = sorted(candidates, key=lambda replica: replica.pod)
        last = self._last_turn.get(key, "")
        chosen = next((replica for replica in ordered if replica.pod > last), ordered[0])
        self._last_turn[key] = chosen.pod
        return chosen

    def _by_affinity(self, key: str, affinity: str, candidates: Sequence[Replica]) -> Replica:
        mean = sum(self.score(replica.url) for replica in candidates) / len(candidates)
        bound = mean * (1 + AFFINITY_SLACK) + AFFINITY_SLACK
        ordered = sorted(candidates, key=lambda replica: _rendezvous(affinity, replica.pod), reverse=True)
        chosen = next(replica for replica in ordered if self.score(replica.url) <= bound)
        if chosen is not ordered[0]:
            self._on_spill(key)
        return chosen


def _rendezvous(affinity: str, pod: str) -> bytes:
    return hashlib.blake2b(f"{affinity}\0{pod}".encode(), digest_size=8).digest()
