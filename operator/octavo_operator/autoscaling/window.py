"""When a ModelDeployment last did anything.

Pure bookkeeping: it is told what was observed and when, and never asks. The clock of an entry starts when the entry
does, so a restarted operator waits a whole `idleAfter` before it may scale anything to zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from octavo_operator.autoscaling.policy import Idleness
from octavo_operator.metrics_adapter.store import PodLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What `decide_zero` needs to know of one ModelDeployment's past; times are Unix seconds."""

    last_active: float
    first_ready: float | None
    """First Ready of this spell above zero replicas; None while no replica has been ready in it."""
    last_wake: float | None
    """When it last went from 0 to more, as the operator saw it or a gateway told."""
    held: int
    silent_pods: tuple[str, ...]
    """Ready pods whose load is unknown now, by uid; while there are any, nobody can say that it is idle."""

    def idleness(self, *, now: float, silent_gateways: tuple[str, ...] = ()) -> Idleness:
        """The same as durations up to `now`, which is what `decide_zero` takes."""
        quiet_since = None if self.first_ready is None else max(self.last_active, self.first_ready)
        return Idleness(
            idle_for_s=None if quiet_since is None else now - quiet_since,
            since_last_wake_s=None if self.last_wake is None else now - self.last_wake,
            held=self.held,
            silent_pods=self.silent_pods,
            silent_gateways=silent_gateways,
        )


@dataclass(slots=True)
class _Entry:
    last_active: float
    first_ready: float | None = None
    last_wake: float | None = None
    held: int = 0
    was_zero: bool = False
    requests: dict[str, int] = field(default_factory=dict)
    silent_pods: tuple[str, ...] = ()


class ActivityTracker:
    """Owns one entry for each ModelDeployment, by `NAMESPACE/NAME`."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def observe(
        self,
        key: str,
        *,
        replicas: int,
        loads: Mapping[str, PodLoad | None],
        held: int = 0,
        last_wake: float | None = None,
        now: float,
    ) -> Activity:
        """Take in one round of a ModelDeployment.

        Args:
            key: `NAMESPACE/NAME`.
            replicas: `spec.replicas` as it stands.
            loads: each *ready* pod's fresh load by pod uid; None for a ready pod whose load is unknown.
            held: requests that gateways hold for it.
            last_wake: newest wake that a gateway told, Unix seconds.
            now: Unix seconds.
        """
        entry = self._entries.setdefault(key, _Entry(last_active=now))
        _note_wake(entry, replicas, last_wake, now)
        if loads and entry.first_ready is None:
            entry.first_ready = now
        if _is_active(entry, loads, held):
            entry.last_active = now
        entry.requests = _request_counts(entry.requests, loads)
        entry.held = held
        entry.silent_pods = tuple(sorted(uid for uid, load in loads.items() if load is None))
        return _activity(entry)

    def activity(self, key: str) -> Activity | None:
        """What the last observation led to; None before the first."""
        entry = self._entries.get(key)
        return None if entry is None else _activity(entry)

    def retain(self, keys: Iterable[str]) -> None:
        """Forget every ModelDeployment that is not among `keys`."""
        keep = set(keys)
        self._entries = {key: entry for key, entry in self._entries.items() if key in keep}


def _note_wake(entry: _Entry, replicas: int, told: float | None, now: float) -> None:
    """A new spell above zero begins with a new Ready; whoever wrote the replicas, it counts as a wake."""
    if replicas == 0:
        entry.was_zero = True
        entry.first_ready = None
        entry.requests = {}
    elif entry.was_zero:
        entry.was_zero = False
        entry.last_wake = now
        entry.last_active = now
    if told is not None:
        entry.last_wake = max(told, entry.last_wake if entry.last_wake is not None else told)


def _is_active(entry: _Entry, loads: Mapping[str, PodLoad | None], held: int) -> bool:
    return held > 0 or any(_did_something(entry.requests.get(uid, 0), load) for uid, load in loads.items())


def _did_something(known_requests: int, load: PodLoad | None) -> bool:
    """A pod of unknown load may be working. A counter that fell belongs to a restarted container: from 0 anew."""
    if load is None or load.running > 0 or load.waiting > 0:
        return True
    since = load.requests_total if load.requests_total < known_requests else load.requests_total - known_requests
    return since > 0


def _request_counts(known: Mapping[str, int], loads: Mapping[str, PodLoad | None]) -> dict[str, int]:
    """The counters to compare the next round with; a silent pod keeps its last one, a gone pod loses it."""
    return {uid: known.get(uid, 0) if load is None else load.requests_total for uid, load in loads.items()}


def _activity(entry: _Entry) -> Activity:
    return Activity(
        last_active=entry.last_active,
        first_ready=entry.first_ready,
        last_wake=entry.last_wake,
        held=entry.held,
        silent_pods=entry.silent_pods,
    )
