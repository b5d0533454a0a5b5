"""The built-in autoscaler: the HPA's arithmetic on the loads that the operator reads anyway.

Owns a short memory of each resource that it scales, as the HPA controller does; after a restart of the operator it is
empty, and nothing is taken away before a whole window of it is there again. It decides and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from octavo_operator.api.types import ModelDeployment, Scaling
from octavo_operator.autoscaling.behavior import Behavior, read_behavior
from octavo_operator.autoscaling.hpa_algorithm import (
    Bounds,
    History,
    PodLoads,
    Sample,
    normalize,
    note_change,
    recommend,
)
from octavo_operator.object_cache import ResourceKey
from octavo_operator.observed import Observed, ReplicasWish

SYNC_S = 15.0
"""Between two decisions; the default of the HPA controller, for which the policies' periods are made."""
OUTDATED_S = 60.0
"""Who has not looked for so long, such as an operator that another has led for, knows nothing of what was wanted meanwhile."""


@dataclass(slots=True)
class _Memory:
    seen: int
    """Replicas at the last look."""
    looked_at: datetime
    history: History
    synced_at: datetime | None = None
    wanted: int = 0
    """What was decided then."""
    of: int = 0
    """The replicas that it was decided on; of any other number it says nothing."""


@dataclass(slots=True)
class BuiltInScaler:
    """Owns the memories, by resource."""

    _memories: dict[ResourceKey, _Memory] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._memories)

    def wish(
        self, key: ResourceKey, resource: ModelDeployment, observed: Observed, *, now: datetime
    ) -> ReplicasWish | None:
        """Another number of replicas, where one is wanted; at zero it rests. Raises SpecInvalidError by `behavior`."""
        scaling, current = resource.spec.scaling, resource.spec.replicas
        if scaling is None or not current or resource.spec.suspend:
            self.forget(key)
            return None
        behavior = read_behavior(scaling)
        memory = self._memories.get(key)
        if memory is None or now - memory.looked_at > timedelta(seconds=OUTDATED_S):
            # As the HPA does: what there is counts as recommended, so that a restart takes nothing away.
            memory = self._memories[key] = _Memory(
                seen=current, looked_at=now, history=History(recommendations=(Sample(now, current),))
            )
        memory.looked_at = now
        if current != memory.seen:
            memory.history = note_change(memory.history, current - memory.seen, behavior, now=now)
            memory.seen = current
        bounds = Bounds(least=max(1, scaling.min_replicas), most=scaling.max_replicas)
        if not bounds.least <= current <= bounds.most:
            return _within(bounds, current)
        if memory.synced_at is None or now - memory.synced_at >= timedelta(seconds=SYNC_S):
            _sync(memory, scaling, behavior, bounds, observed, now)
        return _wish(memory, scaling, observed) if memory.of == current != memory.wanted else None

    def look_again_s(self, key: ResourceKey, *, now: datetime) -> float | None:
        """Seconds until the next decision; None for a resource that it does not scale now."""
        memory = self._memories.get(key)
        if memory is None:
            return None
        return SYNC_S if memory.synced_at is None else max(1.0, SYNC_S - (now - memory.synced_at).total_seconds())

    def forget(self, key: ResourceKey) -> None:
        """The resource is gone, sleeps, or something else scales it."""
        self._memories.pop(key, None)


def _sync(
    memory: _Memory, scaling: Scaling, behavior: Behavior, bounds: Bounds, observed: Observed, now: datetime
) -> None:
    """A new decision; the old one stays without effect where no pod tells its pressure."""
    current = memory.of = memory.wanted = memory.seen
    target = _thousandths(float(scaling.target_pressure))
    wanted = recommend(_loads(observed), current=current, target=target, behavior=behavior)
    if wanted is None:
        return
    memory.synced_at = now
    memory.wanted, memory.history = normalize(
        wanted, memory.history, current=current, bounds=bounds, behavior=behavior, now=now
    )


def _loads(observed: Observed) -> PodLoads:
    pods = observed.living_pods
    told = tuple(_thousandths(observed.pressures[pod.name]) for pod in pods if pod.name in observed.pressures)
    silent = [pod for pod in pods if pod.name not in observed.pressures]
    num_pending = sum(pod.is_pending for pod in silent)
    return PodLoads(pressures=told, num_silent=len(silent) - num_pending, num_pending=num_pending)


def _thousandths(ratio: float) -> int:
    return round(ratio * 1000)


def _wish(memory: _Memory, scaling: Scaling, observed: Observed) -> ReplicasWish:
    told = "" if observed.pressure is None else f" at pressure {observed.pressure:.2f} of {scaling.target_pressure}"
    return ReplicasWish(replicas=memory.wanted, reason=f"the operator asks for {memory.wanted}{told}")


def _within(bounds: Bounds, current: int) -> ReplicasWish:
    if current < bounds.least:
        return ReplicasWish(replicas=bounds.least, reason=f"minReplicas is {bounds.least}")
    return ReplicasWish(replicas=bounds.most, reason=f"maxReplicas is {bounds.most}")
