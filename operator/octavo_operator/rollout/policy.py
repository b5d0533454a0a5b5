"""The rollout, decided from values alone: which revision, by which strategy, how many replicas of each, who is admitted.

All memory is `status.rollout`. The reconciler writes it before it carries anything out, so that the same decision comes
out whoever makes it next, at whatever point the one before died.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

from octavo_operator.api import reasons
from octavo_operator.api.rollout_status import Refused, RolloutStatus, parse_time
from octavo_operator.api.types import ModelDeployment, Rollout
from octavo_operator.desired import names
from octavo_operator.desired.revision import Revision, choose_revision, number_of, revisions_to_keep
from octavo_operator.observed import Observed, replicas_of
from octavo_operator.rollout.counts import STRATEGIES, Situation
from octavo_operator.rollout.fleet import Fleet, count_fleet
from octavo_operator.rollout.gate import FAILED, MEASURING, PASSED, RUNNING, advance, next_check, paused
from octavo_operator.rollout.gate_report import GateCheck
from octavo_operator.rollout.when import Wait, check_window, why_wait

NO_ROOM_S = 20
"""How long a surge waits for room before replicas are swapped: a node that another pod just left is found sooner."""
LOOK_AT_FETCH_S = 20.0
"""The end of a download is an event; this is for one that was missed."""
OUT_S = 60
"""Who has served nothing for so long may begin a rollout at any time."""
NEW_NODE_S = 900
"""How long a surge waits for a node that is on its way."""

_WHY = {
    "Surge": "a replica of the new revision comes up beside those that serve",
    "HoldAndSwap": "replicas are swapped one by one in the room of those that serve; requests are held meanwhile",
    "Recreate": "all replicas leave before the new ones start; requests are held meanwhile",
}
_WHY_SWAP = (
    f"no room for another replica for {NO_ROOM_S} s and nothing adds nodes, so replicas are swapped one by one; "
    "requests are held meanwhile"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    fleets: tuple[tuple[Revision, int], ...]
    """Revisions with their replicas: the one that is rolled out first, then those that have or still hold pods."""
    counts: Mapping[str, int]
    """Replicas by revision, those too whose template is not known any more."""
    kept: frozenset[str]
    """Revisions to go on keeping; older ones may be forgotten."""
    status: RolloutStatus
    check: GateCheck | None = None
    """What has to be asked for the gate now."""
    look_again_s: float | None = None
    """Seconds until this decision may come out otherwise though nothing happens; None where it does not."""


def decide(
    resource: ModelDeployment, rendered: Revision, observed: Observed, *, now: datetime, is_fetched: bool = True
) -> Decision:
    """What this operator has rendered counts only where the spec asks for something that was not rendered before.

    `is_fetched` says whether the model that the spec asks for is where its pods will look for it.
    """
    before = _remembered(observed)
    wanted = choose_revision(resource, rendered, observed.revisions)
    known = {wanted.name: wanted, **observed.revisions}
    if resource.spec.suspend:
        return _suspended(known.get(before.revision, wanted), before, observed)
    before = replace(before, pending="", refused=_still_refused(before.refused, wanted, resource.spec.rollout))
    target = _choose_target(wanted, known, before)
    wait = _why_wait(resource, wanted, target, observed, before, now, is_fetched)
    if wait is not None:
        target = known[before.revision]
    status = _begin(target, before)
    scene = _Scene(resource=resource, target=target, known=known, observed=observed, now=now)
    status = _choose_strategy(scene, status)
    status = _hold(scene, _advance_gate(scene, status))
    failure = _failure(scene, status)
    if failure is not None:
        status = _roll_back(scene, status, *failure)
        scene = replace(scene, target=known[status.stable])
    status = _admit(scene, status)
    counts = _count(scene, status)
    status = _settle(scene, status, counts)
    if wait is not None:
        status = replace(status, pending=wanted.name, why=wait.why)
    return _decision(scene, status, counts, wanted, wait)


def settings_of(rollout: Rollout) -> str:
    """Fingerprint of what is set: a change of it lets a revision that was rolled back try again."""
    defaults = asdict(Rollout())
    return names.fingerprint({key: value for key, value in asdict(rollout).items() if value != defaults[key]})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scene:
    """What all steps of one decision look at."""

    resource: ModelDeployment
    target: Revision
    known: Mapping[str, Revision]
    observed: Observed
    now: datetime

    @property
    def others(self) -> dict[str, Fleet]:
        """Every other revision that has a Deployment or pods; by name, so that the order never changes."""
        names_ = {*self.observed.deployments, *(pod.revision for pod in self.observed.pods)} - {self.target.name}
        fleets = {name: count_fleet(self.observed, name, now=self.now) for name in sorted(names_)}
        return {name: fleet for name, fleet in fleets.items() if fleet.count or fleet.existing}

    @property
    def fleet(self) -> Fleet:
        return count_fleet(self.observed, self.target.name, now=self.now)

    def serving(self, status: RolloutStatus) -> dict[str, Fleet]:
        """Those of `others` that the gateway routes to, the stable one first."""
        others = self.others
        admitted = sorted(others.keys() & set(status.admitted), key=lambda name: (name != status.stable, name))
        return {name: others[name] for name in admitted}


def _remembered(observed: Observed) -> RolloutStatus:
    """The status; where it was lost, everything that runs counts as admitted, because so does the gateway see it."""
    status = RolloutStatus.read(observed.status)
    return status if status.admitted else replace(status, admitted=tuple(sorted(observed.deployments)))


def _suspended(target: Revision, before: RolloutStatus, observed: Observed) -> Decision:
    """Nothing moves, and what is remembered stays, but for what would run out meanwhile: it begins anew afterwards."""
    before = replace(before, no_room_since=None, held_since=None, gate=paused(before.gate))
    counts = {name: replicas_of(deployment) for name, deployment in observed.deployments.items()}
    status = before if before.revision else RolloutStatus(revision=target.name, admitted=(target.name,))
    kept = frozenset(observed.revisions)
    return Decision(fleets=((target, counts.get(target.name, 0)),), counts=counts, kept=kept, status=status)


def _decision(
    scene: _Scene, status: RolloutStatus, counts: Mapping[str, int], wanted: Revision, wait: Wait | None
) -> Decision:
    kept = scene.observed.revisions
    others = (scene.known[name] for name in scene.others if name in scene.known)
    target = replace(scene.target, number=number_of(scene.target, kept))
    in_use = {target.name, wanted.name, status.stable, *counts}
    return Decision(
        fleets=((target, counts[target.name]), *((other, counts.get(other.name, 0)) for other in others)),
        counts=counts,
        kept=revisions_to_keep(kept, in_use),
        status=status,
        check=_next_check(scene, status),
        look_again_s=_next_look_s(scene, status, wait),
    )


def _still_refused(refused: Refused | None, wanted: Revision, rollout: Rollout) -> Refused | None:
    if refused is None or (refused.revision, refused.settings) != (wanted.name, settings_of(rollout)):
        return None
    return refused


def _choose_target(wanted: Revision, known: Mapping[str, Revision], before: RolloutStatus) -> Revision:
    if before.refused is not None and before.stable in known:
        return known[before.stable]
    return wanted


def _why_wait(
    resource: ModelDeployment,
    wanted: Revision,
    target: Revision,
    observed: Observed,
    before: RolloutStatus,
    now: datetime,
    is_fetched: bool,
) -> Wait | None:
    """None for what needs no permission: what has begun, what goes back, and what disturbs nobody."""
    check_window(resource.spec.rollout.when)
    serves = any(pod.revision in before.admitted for pod in observed.ready_pods())
    goes_back = target.name != wanted.name or target.name == before.stable
    is_out = not serves and (not before.stable or _has_been_out(observed, now))
    if target.name == before.revision or before.revision not in observed.revisions or goes_back or is_out:
        return None
    if not is_fetched:
        return Wait(why="its model is being fetched", look_again_s=LOOK_AT_FETCH_S)
    wait = why_wait(resource.spec.rollout.when, idle_for_s=observed.idle_for_s, now=now)
    return wait if wait is None or serves else replace(wait, look_again_s=min(wait.look_again_s, OUT_S))


def _has_been_out(observed: Observed, now: datetime) -> bool:
    """Whether nothing has served for a while, as the status tells: a replica that comes back in a moment is no reason."""
    told = next((each for each in observed.status.get("conditions") or () if each["type"] == "Available"), None)
    since = parse_time(told["lastTransitionTime"]) if told is not None and told["status"] == "False" else now
    return since is None or now - since >= timedelta(seconds=OUT_S)


def _begin(target: Revision, before: RolloutStatus) -> RolloutStatus:
    """What is remembered of the rollout before ends where another target begins."""
    if target.name == before.revision:
        return before
    return RolloutStatus(revision=target.name, stable=before.stable, admitted=before.admitted, refused=before.refused)


def _choose_strategy(scene: _Scene, status: RolloutStatus) -> RolloutStatus:
    """Auto is Surge until that has found no room for a while, and from then on HoldAndSwap."""
    if not scene.others:
        return replace(status, no_room_since=None)
    asked = scene.resource.spec.rollout.strategy
    if asked != "Auto":
        status = replace(status, strategy=asked, why=_WHY[asked])
    elif status.strategy != "HoldAndSwap":
        status = replace(status, strategy="Surge", why=_WHY["Surge"])
    may_swap = asked == "Auto" or asked == "HoldAndSwap"
    since = (status.no_room_since or scene.now) if may_swap and _wants_room(scene, status) else None
    status = replace(status, no_room_since=since)
    if status.strategy == "Surge" and _has_waited(scene, status):
        return replace(status, strategy="HoldAndSwap", why=_WHY_SWAP, no_room_since=None)
    return status


def _has_waited(scene: _Scene, status: RolloutStatus) -> bool:
    """Whether room has been lacking for so long that somebody must make it."""
    return status.no_room_since is not None and scene.now - status.no_room_since >= _patience(scene)


def _wants_room(scene: _Scene, status: RolloutStatus) -> bool:
    """What drains is about to make room, and what does not serve gives it up anyway."""
    is_draining = any(pod.is_terminating and not pod.is_lost(scene.now) for pod in scene.observed.pods)
    return scene.fleet.wants_room and not is_draining and bool(scene.serving(status))


def _patience(scene: _Scene) -> timedelta:
    return timedelta(seconds=NEW_NODE_S if scene.observed.awaits_node else NO_ROOM_S)


def _hold(scene: _Scene, status: RolloutStatus) -> RolloutStatus:
    """Notes since when a swap has left no replica that requests may go to."""
    is_swap = status.strategy in ("HoldAndSwap", "Recreate") and status.revision != status.stable
    is_ready = any(pod.revision in status.admitted for pod in scene.observed.ready_pods())
    if not is_swap or is_ready or scene.resource.wanted_replicas == 0:
        return replace(status, held_since=None)
    return replace(status, held_since=status.held_since or scene.now)


def _is_guarded(scene: _Scene, status: RolloutStatus) -> bool:
    """Whether the target must pass the gate first; where there is nothing to go back to, it would be of no use."""
    is_new = status.stable in scene.known and scene.target.name not in (status.stable, *status.admitted)
    return is_new and scene.resource.spec.rollout.gate.is_set


def _advance_gate(scene: _Scene, status: RolloutStatus) -> RolloutStatus:
    if not _is_guarded(scene, status):
        return status
    gate = advance(
        scene.resource.spec.rollout.gate,
        status.gate,
        stable=status.stable,
        target=scene.target.name,
        observed=scene.observed,
        now=scene.now,
    )
    return replace(status, gate=gate)


def _next_check(scene: _Scene, status: RolloutStatus) -> GateCheck | None:
    if not _is_guarded(scene, status):
        return None
    return next_check(
        scene.resource.spec.rollout.gate,
        status.gate,
        stable=scene.known[status.stable],
        target=scene.target,
        default_name=scene.resource.name,
        observed=scene.observed,
    )


def _failure(scene: _Scene, status: RolloutStatus) -> tuple[str, str] | None:
    """Reason and message, where the target must make room for the stable revision again."""
    name = scene.target.name
    if _is_guarded(scene, status) and status.gate is not None and status.gate.state == FAILED:
        return reasons.ROLLOUT_GATE_FAILED, f"revision {name} did not pass the gate: {status.gate.message}"
    if _is_held_too_long(scene, status):
        max_hold_s = scene.resource.spec.rollout.max_hold_s
        message = f"no replica of revision {name} became ready within maxHold, {max_hold_s} s"
        return reasons.MAX_HOLD_EXCEEDED, message
    return None


def _is_held_too_long(scene: _Scene, status: RolloutStatus) -> bool:
    """Only where there is something to go back to; what is ready but not admitted yet is about to be."""
    if status.held_since is None or status.stable not in scene.known or scene.fleet.ready:
        return False
    return scene.now - status.held_since >= timedelta(seconds=scene.resource.spec.rollout.max_hold_s)


def _roll_back(scene: _Scene, status: RolloutStatus, reason: str, message: str) -> RolloutStatus:
    settings = settings_of(scene.resource.spec.rollout)
    return RolloutStatus(
        revision=status.stable,
        stable=status.stable,
        admitted=tuple(name for name in status.admitted if name != scene.target.name) or (status.stable,),
        strategy=status.strategy,
        why=f"rolled back: {message}",
        refused=Refused(revision=scene.target.name, settings=settings, reason=reason, message=message),
        gate=status.gate,
    )


def _admit(scene: _Scene, status: RolloutStatus) -> RolloutStatus:
    """The target joins with its first ready replica, or at once where no other serves."""
    if _is_guarded(scene, status) and (status.gate is None or status.gate.state != PASSED):
        return status
    serves_elsewhere = any(fleet.ready for fleet in scene.serving(status).values())
    if scene.target.name in status.admitted or scene.fleet.ready or not serves_elsewhere:
        others = tuple(name for name in status.admitted if name != scene.target.name)
        return replace(status, admitted=(scene.target.name, *others))
    return status


def _count(scene: _Scene, status: RolloutStatus) -> dict[str, int]:
    serving = scene.serving(status)
    situation = Situation(
        wanted=scene.resource.wanted_replicas,
        target=scene.fleet,
        is_admitted=scene.target.name in status.admitted,
        serving=serving,
        others_existing=sum(fleet.existing for fleet in scene.others.values()),
        may_begin=status.gate is None or status.gate.state != MEASURING,
        is_scaled=scene.resource.spec.scaling is not None,
        lacks_room=status.strategy == "HoldAndSwap" and _has_waited(scene, status),
    )
    counts = STRATEGIES[status.strategy or "Surge"](situation)
    return {**dict.fromkeys(scene.observed.deployments, 0), **counts.others, scene.target.name: counts.target}


def _settle(scene: _Scene, status: RolloutStatus, counts: Mapping[str, int]) -> RolloutStatus:
    """Who has gone to zero is no longer admitted; a target that serves whole is what to go back to from now on."""
    target = scene.target.name
    if target not in status.admitted:
        return status
    admitted = tuple(name for name in status.admitted if name == target or counts.get(name))
    wanted = scene.resource.wanted_replicas
    is_whole = wanted > 0 and scene.fleet.ready >= wanted
    is_done = is_whole and not scene.others and status.refused is None
    return replace(
        status,
        admitted=admitted,
        stable=target if is_whole else status.stable,
        why="" if is_done else status.why,
    )


def _next_look_s(scene: _Scene, status: RolloutStatus, wait: Wait | None) -> float | None:
    """The times at which room has been lacking, or requests have been held, or a rollout has waited for long enough."""
    due = []
    if wait is not None:
        due.append(scene.now + timedelta(seconds=wait.look_again_s))
    if status.no_room_since is not None:
        due.append(status.no_room_since + _patience(scene))
    if status.gate is not None and status.gate.state in (MEASURING, RUNNING):
        due.append(status.gate.at + timedelta(seconds=scene.resource.spec.rollout.gate.timeout_s))
    if status.held_since is not None:
        due.append(status.held_since + timedelta(seconds=scene.resource.spec.rollout.max_hold_s))
    return min(((at - scene.now).total_seconds() for at in due if at > scene.now), default=None)
