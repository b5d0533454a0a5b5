"""How many replicas the Deployments are asked for: what the scaler wants, held back by the pending guard.

`spec.replicas` is what the scaler asks for, and the scaler's alone; this is what the operator makes of it. Pure: all
memory is `status.scaling`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from octavo_operator.api.scaling_status import ScalingStatus
from octavo_operator.api.types import ModelDeployment, Scaling
from octavo_operator.autoscaling.guard import find_blocker
from octavo_operator.autoscaling.schedule import Scheduled
from octavo_operator.desired.scaler import BUILT_IN, HPA, KEDA, Scaler
from octavo_operator.observed import Observed
from octavo_operator.units import seconds_text

_ASKERS = {HPA: "the HorizontalPodAutoscaler", KEDA: "KEDA", BUILT_IN: "the operator"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """What became of the scaler's wish."""

    resource: ModelDeployment
    """As all that follows shall see it: `wanted_replicas` is what may be asked for now."""
    status: ScalingStatus


def grant(scheduled: Scheduled, observed: Observed, scaler: Scaler, *, now: datetime) -> Granted:
    """A wish for fewer replicas is granted at once, one for more when nothing is on its way any more."""
    resource = scheduled.resource
    before, asked = ScalingStatus.read(observed.status), resource.wanted_replicas
    before = replace(before, schedule=scheduled.schedule)
    scaling = resource.spec.scaling
    if scaling is None:
        return Granted(resource=resource, status=ScalingStatus(desired=asked))
    if resource.spec.suspend:
        return Granted(resource=resource, status=replace(before, desired=asked))
    reason = _why(scaling, scaler, observed, before, asked)
    # Whoever writes to the scale subresource may write more than may be, and the autoscaler needs a while to correct it.
    asked = min(asked, scaling.max_replicas)
    blocker = "" if before.desired is None or asked <= before.desired else find_blocker(resource, observed, now=now)
    # The least is a person's word, and no guess of a scaler that more would help.
    granted = max(int(before.desired or 0), min(asked, scaling.min_replicas)) if blocker else asked
    status = before.moved(granted, reason, at=now)
    status = status.held(asked, reason, blocker, at=now) if granted < asked else status.unwanted()
    return Granted(resource=_with_replicas(resource, granted), status=status)


def _with_replicas(resource: ModelDeployment, replicas: int) -> ModelDeployment:
    return replace(resource, spec=replace(resource.spec, replicas=replicas))


def _why(scaling: Scaling, scaler: Scaler, observed: Observed, status: ScalingStatus, asked: int) -> str:
    """Who asks for this number, as far as the numbers tell."""
    before, by = status.desired, f" by schedule {status.schedule}" if status.schedule else ""
    if asked == 0:
        if scaling.min_replicas:
            return "replicas was set to 0"
        return f"no request for {seconds_text(scaling.idle_after_s)}, which is its idleAfter"
    if before == 0:
        return "a request came while there was no replica"
    if before is not None and before < asked == scaling.min_replicas:
        return f"minReplicas is {scaling.min_replicas}{by}"
    if asked > scaling.max_replicas or (before is not None and before > asked == scaling.max_replicas):
        return f"maxReplicas is {scaling.max_replicas}{by}"
    pressure = "" if observed.pressure is None else f" at pressure {observed.pressure:.2f} of {scaling.target_pressure}"
    return f"{_ASKERS[scaler.kind]} asks for {asked}{pressure}"
