"""What was observed as conditions: for each a status, one reason and one sentence with numbers.

| type | True when |
|---|---|
| Ready | every wanted replica of the wanted revision serves (or zero is wanted and a request wakes it) |
| Available | at least one replica serves |
| Progressing | something is on its way to what is wanted |
| ModelCached | the model is on its claim, whole and checked (only where a Job fetches it) |
| Scheduled | no pod waits for a node |
| ScalingActive | the autoscaler reads the pressure (only where `scaling` is set) |
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from octavo_operator.api import reasons
from octavo_operator.api.rollout_status import RolloutStatus
from octavo_operator.api.types import JsonObject, ModelDeployment
from octavo_operator.desired.render import Desired
from octavo_operator.diagnosis import diagnose_deployment, diagnose_download, diagnose_pod
from octavo_operator.finding import Finding, worst
from octavo_operator.observed import Observed
from octavo_operator.plan import is_whole
from octavo_operator.rollout.fleet import wants_room
from octavo_operator.scaler_view import view_scaler

READY, AVAILABLE, PROGRESSING = "Ready", "Available", "Progressing"
MODEL_CACHED, SCHEDULED, SCALING_ACTIVE = "ModelCached", "Scheduled", "ScalingActive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One metav1.Condition without its times."""

    kind: str
    status: bool | None
    """None is Unknown."""
    reason: str
    message: str


def make_conditions(resource: ModelDeployment, desired: Desired, observed: Observed) -> tuple[Condition, ...]:
    """The conditions of a valid resource whose plan was carried out."""
    fetching = _fetching(resource, desired, observed)
    findings = (*fetching, *_findings(resource, observed, desired.revision))
    conditions = [
        _ready(resource, desired, observed, findings),
        _available(observed, wanted=desired.replicas, rollout=desired.rollout),
        _progressing(resource, desired, observed, findings),
        _scheduled(observed, (*fetching, *_findings(resource, observed))),
    ]
    if desired.job is not None:
        conditions.append(_model_cached(desired, observed, fetching))
    if resource.spec.scaling is not None:
        conditions.append(_scaling_active(resource, desired, observed))
    return tuple(conditions)


def make_failed_conditions(observed: Observed, failure: Finding) -> tuple[Condition, ...]:
    """The conditions where a step failed: what runs goes on, and Ready and Progressing name the failure."""
    return (
        Condition(kind=READY, status=False, reason=failure.reason, message=failure.sentence),
        _available(observed, wanted=1, rollout=RolloutStatus.read(observed.status)),
        Condition(kind=PROGRESSING, status=False, reason=failure.reason, message=failure.sentence),
    )


def merge_conditions(
    old: Iterable[JsonObject], new: Iterable[Condition], *, generation: int, now: str
) -> list[dict[str, Any]]:
    """Conditions as JSON; `now` is the transition time of those whose status changed."""
    known = {condition["type"]: condition for condition in old}
    return [_as_json(condition, known.get(condition.kind), generation, now) for condition in new]


def _as_json(condition: Condition, old: JsonObject | None, generation: int, now: str) -> dict[str, Any]:
    status = {True: "True", False: "False", None: "Unknown"}[condition.status]
    is_same = old is not None and old["status"] == status
    return {
        "type": condition.kind,
        "status": status,
        "observedGeneration": generation,
        "lastTransitionTime": old["lastTransitionTime"] if old is not None and is_same else now,
        "reason": condition.reason,
        "message": condition.message,
    }


def _findings(resource: ModelDeployment, observed: Observed, revision: str | None = None) -> tuple[Finding, ...]:
    """What is amiss, of one revision or of all: what an outdated one suffers from is no news of the wanted one."""
    gpu = resource.spec.resources.gpu.resource_name
    pods = (pod for pod in observed.living_pods if revision in (None, pod.revision))
    deployments = (found for name, found in observed.deployments.items() if revision in (None, name))
    of_pods = (diagnose_pod(pod, observed.startups.get(pod.name), observed.nodes, gpu) for pod in pods)
    of_deployments = map(diagnose_deployment, deployments)
    return tuple(finding for finding in (*of_deployments, *of_pods) if finding is not None)


def _fetching(resource: ModelDeployment, desired: Desired, observed: Observed) -> tuple[Finding, ...]:
    """Why the model is not on its claim yet; nothing where it is, or where no Job fetches it."""
    if observed.is_fetched(desired.job):
        return ()
    gpu = resource.spec.resources.gpu.resource_name
    pods = [pod for pod in observed.downloads if not pod.is_finished and not pod.is_terminating]
    found = tuple(diagnose_download(pod, observed.startups.get(pod.name), observed.nodes, gpu) for pod in pods)
    return found or (Finding(reason=reasons.CREATING, sentence="the download of the model is being made"),)


def _model_cached(desired: Desired, observed: Observed, fetching: tuple[Finding, ...]) -> Condition:
    finding = worst(fetching)
    if finding is not None:
        return Condition(kind=MODEL_CACHED, status=False, reason=finding.reason, message=finding.sentence)
    job = desired.job[1] if desired.job is not None else ""
    message = f"Job {job} has fetched and checked the model"
    return Condition(kind=MODEL_CACHED, status=True, reason=reasons.FETCHED, message=message)


def _missing(resource: ModelDeployment, findings: tuple[Finding, ...]) -> Finding:
    """Why a wanted replica does not serve."""
    if resource.spec.suspend:
        rests = Finding(reason=reasons.SUSPENDED, sentence="nothing is changed while suspend is true")
        return worst(findings) or rests
    return worst(findings) or Finding(reason=reasons.CREATING, sentence="the pods are being made")


def _ready(resource: ModelDeployment, desired: Desired, observed: Observed, findings: tuple[Finding, ...]) -> Condition:
    ready, wanted = len(observed.ready_pods(desired.revision)), desired.replicas
    count = f"{ready} of {wanted} replicas ready"
    if observed.rivals:
        held = "; ".join(
            f"{rival.served_name!r} is held by the older {rival.namespace}/{rival.name}" for rival in observed.rivals
        )
        message = f"{held}; {resource.namespace}/{resource.name} always routes here"
        return Condition(kind=READY, status=False, reason=reasons.SERVED_NAME_CONFLICT, message=message)
    if observed.keys_trouble:
        return Condition(kind=READY, status=False, reason=reasons.KEYS_UNREADABLE, message=observed.keys_trouble)
    if wanted == 0:
        return _zero(resource)
    refused = desired.rollout.refused
    if refused is not None:
        message = f"{refused.message}; {count} of revision {desired.revision}, which was before"
        return Condition(kind=READY, status=False, reason=refused.reason, message=message)
    if is_whole(desired, observed):
        draining, pending = _draining(observed), _pending(desired)
        return Condition(kind=READY, status=True, reason=reasons.ALL_READY, message=f"{count}{draining}{pending}")
    finding = _missing(resource, findings)
    serving = len(observed.ready_pods()) - ready
    still = f"; {serving} of the revision before still serve" if serving else ""
    if serving and desired.rollout.strategy == "Surge" and wants_room(observed, desired.revision):
        still += _way_out(resource)
    return Condition(kind=READY, status=False, reason=finding.reason, message=f"{count}; {finding.sentence}{still}")


def _zero(resource: ModelDeployment) -> Condition:
    if resource.may_sleep:
        message = "no replicas because nobody asks; the next request through the gateway wakes one"
        return Condition(kind=READY, status=True, reason=reasons.SCALED_TO_ZERO, message=message)
    message = "replicas is 0; set it to 1 or more to serve"
    return Condition(kind=READY, status=False, reason=reasons.SCALED_TO_ZERO, message=message)


def _way_out(resource: ModelDeployment) -> str:
    if resource.spec.rollout.strategy == "Surge":
        return "; rollout.strategy Surge waits for room, Auto or HoldAndSwap would swap replicas without it"
    return "; if no room comes, replicas are swapped one by one"


def _pending(desired: Desired) -> str:
    rollout = desired.rollout
    return f"; revision {rollout.pending} waits: {rollout.why}" if rollout.pending else ""


def _draining(observed: Observed) -> str:
    draining = sum(pod.is_terminating for pod in observed.pods)
    return f"; {draining} drain" if draining else ""


def _available(observed: Observed, *, wanted: int, rollout: RolloutStatus) -> Condition:
    ready = sum(not rollout.admitted or pod.revision in rollout.admitted for pod in observed.ready_pods())
    if ready:
        message = f"{ready} {'replica takes' if ready == 1 else 'replicas take'} requests"
        return Condition(kind=AVAILABLE, status=True, reason=reasons.SOME_READY, message=message)
    draining = sum(pod.is_terminating for pod in observed.pods)
    if rollout.held_since is not None:
        message = f"the gateway holds requests: {rollout.why}"
        return Condition(kind=AVAILABLE, status=False, reason=reasons.HOLDING_REQUESTS, message=message)
    if draining:
        message = f"no replica takes requests; {draining} finish what runs"
        return Condition(kind=AVAILABLE, status=False, reason=reasons.DRAINING, message=message)
    alive = reasons.STARTING if observed.living_pods else reasons.CREATING
    reason = alive if wanted else reasons.SCALED_TO_ZERO
    return Condition(kind=AVAILABLE, status=False, reason=reason, message="no replica takes requests")


def _progressing(
    resource: ModelDeployment, desired: Desired, observed: Observed, findings: tuple[Finding, ...]
) -> Condition:
    if resource.spec.suspend:
        message = "suspend is true: rollout, scaling and repair rest, running pods stay"
        return Condition(kind=PROGRESSING, status=False, reason=reasons.SUSPENDED, message=message)
    rollout = desired.rollout
    others = [revision for revision in observed.deployments if revision != desired.revision]
    if rollout.refused is not None:
        return Condition(kind=PROGRESSING, status=False, reason=rollout.refused.reason, message=rollout.refused.message)
    if rollout.pending:
        message = f"revision {rollout.pending} waits: {rollout.why}"
        return Condition(kind=PROGRESSING, status=True, reason=reasons.ROLLOUT_PENDING, message=message)
    if not others and is_whole(desired, observed):
        message = f"revision {desired.revision} runs with {desired.replicas} replicas"
        return Condition(kind=PROGRESSING, status=False, reason=reasons.ROLLED_OUT, message=message)
    finding = _missing(resource, findings)
    if not others:
        return Condition(kind=PROGRESSING, status=True, reason=finding.reason, message=finding.sentence)
    waits = "" if is_whole(desired, observed) else f"; {finding.sentence}"
    how = f" by {rollout.strategy}: {rollout.why}" if rollout.strategy and rollout.why else ""
    message = f"revision {desired.revision} replaces {', '.join(others)}{how}{waits}"
    return Condition(kind=PROGRESSING, status=True, reason=reasons.ROLLING_OUT, message=message)


_UNSCHEDULED = frozenset(
    {
        reasons.INSUFFICIENT_GPU,
        reasons.INSUFFICIENT_RESOURCES,
        reasons.NODE_SELECTOR_MISMATCH,
        reasons.TAINT_NOT_TOLERATED,
        reasons.VOLUME_UNBOUND,
        reasons.RESOURCE_CLAIM_PENDING,
        reasons.UNSCHEDULABLE,
    }
)


def _scheduled(observed: Observed, findings: tuple[Finding, ...]) -> Condition:
    finding = worst(finding for finding in findings if finding.reason in _UNSCHEDULED)
    if finding is not None:
        return Condition(kind=SCHEDULED, status=False, reason=finding.reason, message=finding.sentence)
    pods = len(observed.living_pods)
    message = f"{pods} {'pod has' if pods == 1 else 'pods have'} a node"
    return Condition(kind=SCHEDULED, status=True, reason=reasons.ALL_SCHEDULED, message=message)


def _scaling_active(resource: ModelDeployment, desired: Desired, observed: Observed) -> Condition:
    if resource.wanted_replicas == 0:
        message = "at zero replicas the autoscaler rests; a request wakes the model"
        return Condition(kind=SCALING_ACTIVE, status=False, reason=reasons.SCALED_TO_ZERO, message=message)
    if desired.scaler.trouble:
        message = desired.scaler.trouble
        return Condition(kind=SCALING_ACTIVE, status=False, reason=reasons.SCALER_UNAVAILABLE, message=message)
    found = view_scaler(resource, desired.scaler, observed)
    if found.is_active is None:
        return Condition(kind=SCALING_ACTIVE, status=None, reason=reasons.SCALER_STARTING, message=found.message)
    if not found.is_active:
        return Condition(kind=SCALING_ACTIVE, status=False, reason=reasons.METRICS_UNAVAILABLE, message=found.message)
    waits = desired.scaling.blocked
    if waits is None:
        return Condition(kind=SCALING_ACTIVE, status=True, reason=reasons.SCALER_READY, message=found.message)
    message = f"{waits.after} replicas wanted, {waits.before} asked for; the rest waits: {waits.blocked_by}"
    return Condition(kind=SCALING_ACTIVE, status=True, reason=reasons.SCALING_BLOCKED, message=message)
