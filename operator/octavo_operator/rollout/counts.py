"""How many replicas each revision should have now, by strategy. Level-based: from what is there, not from what was done.

| strategy | the new revision | those that serve |
|---|---|---|
| Surge | one more than is wanted in all; all of them once nothing else serves | leave as the new ones become ready |
| HoldAndSwap | one at a time, in the room of one that has gone | one leaves when all new ones are ready, or find no room |
| Recreate | all, when nothing else is there | leave at once |

Revisions that the gateway does not route to (rolled back, or overtaken before they served) get none in any strategy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from octavo_operator.rollout.fleet import Fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a strategy decides on."""

    wanted: int
    """Replicas asked for."""
    target: Fleet
    """The revision that is rolled out."""
    is_admitted: bool
    """Whether the gateway routes to it."""
    serving: Mapping[str, Fleet]
    """Other revisions that the gateway routes to; the one to keep longest first."""
    others_existing: int
    """Pods of all other revisions that hold room, draining and refused ones included."""
    may_begin: bool = True
    """Whether what serves may be taken away yet."""
    is_scaled: bool = False
    """Whether a scaler asks: it wants more of what serves at once, and not only when the target does, if ever."""
    lacks_room: bool = False
    """A new replica has waited in vain for the room that was made for it: it is larger, or somebody else took that."""

    @property
    def serving_count(self) -> int:
        return sum(fleet.count for fleet in self.serving.values())

    @property
    def serving_ready(self) -> int:
        return sum(fleet.ready for fleet in self.serving.values())

    @property
    def may_grow(self) -> bool:
        """Whether what serves may have more replicas than it has; never in the way of a target that waits for room."""
        return self.is_scaled and not self.is_admitted and not self.target.wants_room


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    target: int
    others: Mapping[str, int]
    """Of `Situation.serving`; every other revision has none."""


def surge(now: Situation) -> Counts:
    """Never fewer ready than before; one replica's worth of room is needed on top."""
    count, target = min(now.wanted, now.target.count), now.target
    if now.serving_ready == 0:
        count = now.wanted
    elif not now.is_admitted:
        count = min(now.wanted, max(1, count))
    else:
        count = max(count, min(now.wanted, target.ready + 1))
    keep = max(0, now.wanted - target.ready) if now.is_admitted else now.wanted
    limits = _limits(now)
    if target.lacks_room and not now.may_grow:
        # A broken or loading pod of a spec that was corrected since must not keep the room from the right one.
        limits = {name: fleet.ready for name, fleet in now.serving.items()}
    return Counts(target=count, others=_share(keep, now, limits))


def hold_and_swap(now: Situation) -> Counts:
    """Never more pods than are wanted: each new one takes the place of one that has gone."""
    count, target = min(now.wanted, now.target.count), now.target
    limits = _limits(now)
    keep = min(now.wanted, sum(limits.values())) if now.serving_ready else 0
    if count + now.others_existing > now.wanted:
        # What a surge made and found no room for.
        count = min(count, max(target.placed, now.wanted - now.others_existing, 0))
    keep = min(keep, now.wanted - count)
    if now.lacks_room and now.others_existing <= now.serving_count:
        keep = min(keep, now.serving_count - 1)
    is_settled = target.ready >= count and target.existing <= count and (count == 0 or now.is_admitted)
    if keep == 0:
        count = max(count, now.wanted - now.others_existing - max(0, target.existing - count))
    elif count < now.wanted and is_settled and now.may_begin:
        room = now.wanted - count - 1
        keep = min(keep, room)
        count += now.others_existing <= room
    return Counts(target=count, others=_share(keep, now, limits))


def recreate(now: Situation) -> Counts:
    """Two revisions never run together; nothing serves in between."""
    count = min(now.wanted, now.target.count)
    if now.serving_ready and not now.may_begin:
        return Counts(target=count, others=_share(now.wanted, now, _limits(now)))
    return Counts(target=now.wanted if now.others_existing == 0 else count, others=dict.fromkeys(now.serving, 0))


def _limits(now: Situation) -> dict[str, int]:
    """Most replicas of each revision that serves: what it has, and of the first one what is lacking where that may grow."""
    limits = {name: fleet.count for name, fleet in now.serving.items()}
    first = next(iter(limits), None)
    if first is not None and now.may_grow:
        limits[first] += max(0, now.wanted - now.serving_count)
    return limits


def _share(keep: int, now: Situation, limits: Mapping[str, int]) -> dict[str, int]:
    """`keep` replicas over the revisions that serve, in their order, none above its limit; ready ones before others."""
    shares = dict.fromkeys(now.serving, 0)
    ready = {name: min(fleet.ready, limits[name]) for name, fleet in now.serving.items()}
    for bounds in (ready, limits):
        for name in shares:
            more = min(keep, bounds[name] - shares[name])
            shares[name] += more
            keep -= more
    return shares


STRATEGIES = {"Surge": surge, "HoldAndSwap": hold_and_swap, "Recreate": recreate}
