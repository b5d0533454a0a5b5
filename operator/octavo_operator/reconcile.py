"""A change's life, as a table of contents: observe → validate → render → decide the rollout → plan → execute → status.

Level-triggered: nothing is remembered between two reconciles of a resource but what the cluster itself says.
"""

from __future__ import annotations

import datetime
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from octavo_operator.api import reasons
from octavo_operator.api.rollout_status import RolloutStatus
from octavo_operator.api.types import JsonObject, ModelDeployment
from octavo_operator.api.validation import parse_model_deployment
from octavo_operator.apply import Executor
from octavo_operator.autoscaling.built_in import BuiltInScaler
from octavo_operator.autoscaling.decision import Granted, grant
from octavo_operator.autoscaling.schedule import apply_schedules
from octavo_operator.config import OperatorConfig
from octavo_operator.desired.job import render_model
from octavo_operator.desired.networkpolicy import render_network_policy
from octavo_operator.desired.render import Desired, job_of, render
from octavo_operator.desired.revision import render_revision
from octavo_operator.desired.scaler import BUILT_IN, Scaler, choose_scaler
from octavo_operator.diagnosis import QUOTA_REMEDY
from octavo_operator.errors import (
    ClusterError,
    NameInTransitError,
    NameTakenError,
    OctavoOperatorError,
    SpecInvalidError,
)
from octavo_operator.events import make_event
from octavo_operator.finding import Finding, quote
from octavo_operator.key_secrets import key_secrets
from octavo_operator.metrics import Metrics
from octavo_operator.object_cache import ResourceKey
from octavo_operator.observe import Observer
from octavo_operator.observed import Observed, ReplicasWish, generation_of
from octavo_operator.plan import WriteReplicas, make_plan
from octavo_operator.rollout.gate_report import GateCheck, GateReport
from octavo_operator.rollout.policy import Decision, decide
from octavo_operator.status import make_failed_status, make_status, status_patch

logger = logging.getLogger(__name__)

LOOK_AGAIN_LOADING_S = 3.0
"""Loading pods tell their progress only when asked."""
LOOK_AGAIN_WAITING_S = 20.0
"""A Secret or node that comes later makes no event of ours."""


LOOK_AGAIN_KEYS_S = 15.0
"""Nobody may watch Secrets: that of access.keysFrom is asked for."""
_DENIED = re.compile(r"denied (the )?request")
"""So an admission webhook or a ValidatingAdmissionPolicy says no, with whatever status it likes."""
_TOO_LARGE = (
    "its pods' template is kept beside its spec, and both together may have about 1 MiB: make spec.podTemplate smaller"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a reconcile ended."""

    failure: Finding | None = None
    is_retryable: bool = False
    look_again_s: float | None = None
    """Seconds until the resource should be looked at though nothing tells so; 0 after own changes."""


class GateChecks(Protocol):
    """Who asks pods what a rollout's gate wants to know."""

    def report(self, key: ResourceKey) -> GateReport | None:
        """The report on the check that is wanted, once there is one."""

    def want(self, key: ResourceKey, check: GateCheck | None) -> None:
        """From now on this check and no other."""


class Reconciler:
    """Brings one ModelDeployment at a time closer to what it asks for."""

    def __init__(
        self,
        *,
        observer: Observer,
        executor: Executor,
        metrics: Metrics,
        gates: GateChecks,
        built_in: BuiltInScaler,
        config: OperatorConfig,
        now: Callable[[], datetime.datetime],
    ) -> None:
        self._observer = observer
        self._executor = executor
        self._metrics = metrics
        self._gates = gates
        self._built_in = built_in
        self._config = config
        self._now = now

    async def reconcile(self, key: ResourceKey) -> Outcome:
        """One pass; the status is written even where a step failed."""
        observed = await self._observer.snapshot(key)
        if observed is None or "deletionTimestamp" in observed.resource["metadata"]:
            self._gates.want(key, None)
            self._built_in.forget(key)
            return Outcome()
        observed = replace(observed, gate_report=self._gates.report(key))
        try:
            resource = parse_model_deployment(observed.resource)
            pods = self._config.pods
            scheduled = apply_schedules(resource, now=self._now())
            resource = scheduled.resource
            scaler = choose_scaler(resource, observed.scaling_apis)
            observed = replace(observed, replicas_wish=self._wish(key, resource, scaler, observed))
            granted = grant(scheduled, observed, scaler, now=self._now())
            model, revision = render_model(resource, pods), render_revision(resource, pods)
            is_fetched = observed.is_fetched(job_of(model))
            decision = decide(granted.resource, revision, observed, now=self._now(), is_fetched=is_fetched)
            observed = await self._remember(key, decision, granted, observed)
            self._gates.want(key, decision.check)
            policy = render_network_policy(resource, self._config.network_rules)
            desired = _desired(granted, decision, [*([policy] if policy else []), *model], scaler)
            plan = make_plan(resource, desired, observed)
            changed = await self._executor.execute(key, plan, observed)
        except OctavoOperatorError as error:
            if isinstance(error, ClusterError) and error.is_passing:
                # Nothing is wrong with the resource: the next look decides anew.
                raise
            failure = explain(error)
            await self._write(key, observed, make_failed_status(observed, failure, now=self._stamp()))
            # An invalid spec waits for its edit, or for the next resync: asking again would say the same.
            return Outcome(failure=failure, is_retryable=failure.reason != reasons.SPEC_INVALID)
        if any(isinstance(operation, WriteReplicas) for operation in plan):
            # Its event brings the next look at once, whose status is of the new spec.
            return Outcome()
        await self._write(key, observed, self._status(granted.resource, desired, observed))
        scaler_looks_s = self._built_in.look_again_s(key, now=self._now())
        looks = (_look_again_s(observed), decision.look_again_s, scheduled.look_again_s, scaler_looks_s)
        return Outcome(look_again_s=0.0 if changed else _soonest(*looks))

    def _wish(
        self, key: ResourceKey, resource: ModelDeployment, scaler: Scaler, observed: Observed
    ) -> ReplicasWish | None:
        """Of the built-in autoscaler, where it is this resource's."""
        if scaler.kind == BUILT_IN:
            return self._built_in.wish(key, resource, observed, now=self._now())
        self._built_in.forget(key)
        return None

    async def _remember(self, key: ResourceKey, decision: Decision, granted: Granted, observed: Observed) -> Observed:
        """Writes down what a rollout under way and the scaling go by, before anything is done about it."""
        rollout, scaling = (observed.status.get(name) or {} for name in ("rollout", "scaling"))
        is_scaled = granted.resource.spec.scaling is not None
        patches = {
            "rollout": status_patch(rollout, decision.status.as_json()) if rollout else {},
            "scaling": status_patch(scaling, {**scaling, **granted.status.as_json()}) if scaling and is_scaled else {},
        }
        if patches["rollout"]:
            said = {"resource": "/".join(key), "revision": decision.status.revision, "why": decision.status.why}
            logger.info("rollout goes on", extra={**said, "strategy": decision.status.strategy})
        if patches["scaling"]:
            newest = granted.status.as_json()
            logger.info("scaling", extra={"resource": "/".join(key), **next(iter(newest.get("decisions", ())), newest)})
        if not any(patches.values()):
            return observed
        written = await self._executor.write_status(key, {name: patch for name, patch in patches.items() if patch})
        if generation_of(written) != generation_of(observed.resource):
            raise ClusterError(409, "Conflict", "the spec has changed meanwhile; it is decided anew")
        refused = decision.status.refused
        if refused is not None and refused != RolloutStatus.read(observed.status).refused:
            self._metrics.rollbacks.labels(reason=refused.reason).inc()
        return replace(observed, resource=written)

    def _status(self, resource: ModelDeployment, desired: Desired, observed: Observed) -> dict[str, Any]:
        return make_status(resource, desired, observed, gateway_url=self._config.gateway_url, now=self._stamp())

    async def _write(self, key: ResourceKey, observed: Observed, status: JsonObject) -> None:
        patch = status_patch(observed.status, status)
        if not patch:
            return
        try:
            await self._executor.write_status(key, patch)
        except ClusterError as error:
            if error.status == 404:
                return
            raise
        await self._tell(observed, status)

    async def _tell(self, observed: Observed, status: JsonObject) -> None:
        event = make_event(observed.resource, status, identity=self._config.identity, now=self._now())
        if event is None:
            return
        said = {"resource": "/".join(_name(observed)), "reason": event["reason"], "note": event["message"]}
        logger.info("readiness changed", extra=said)
        await self._executor.tell(event)

    def _stamp(self) -> str:
        return self._now().astimezone(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def explain(error: OctavoOperatorError) -> Finding:
    """An error as a reason and a sentence."""
    match error:
        case SpecInvalidError():
            reason = reasons.SPEC_INVALID
        case NameTakenError():
            reason = reasons.NAME_TAKEN
        case NameInTransitError():
            reason = reasons.CREATING
        case ClusterError() if _DENIED.search(str(error)):
            # A policy's word, which may change without any edit of the resource.
            reason = reasons.CLUSTER_ERROR
        case ClusterError() if error.status == 413 or "request is too large" in str(error):
            return Finding(reason=reasons.SPEC_INVALID, sentence=f"{quote(str(error))}; {_TOO_LARGE}")
        case ClusterError(status=400 | 422):
            # What the overlay, affinity or behavior hold is only known to the API server.
            reason = reasons.SPEC_INVALID
        case ClusterError(status=500) if "failed to create typed patch object" in str(error):
            # So the API server answers an apply with an unknown field, or with text where an object belongs.
            reason = reasons.SPEC_INVALID
        case ClusterError(status=403) if "exceeded quota" in str(error):
            return Finding(reason=reasons.QUOTA_EXCEEDED, sentence=f"{quote(str(error))}; {QUOTA_REMEDY}")
        case _:
            reason = reasons.CLUSTER_ERROR
    return Finding(reason=reason, sentence=quote(str(error)))


def _desired(granted: Granted, decision: Decision, first: Sequence[JsonObject], scaler: Scaler) -> Desired:
    desired = render(
        granted.resource,
        decision.fleets,
        counts=decision.counts,
        kept=decision.kept,
        rollout=decision.status,
        first=first,
        scaler=scaler,
    )
    return replace(desired, scaling=granted.status)


def _soonest(*seconds: float | None) -> float | None:
    return min((each for each in seconds if each is not None), default=None)


def _look_again_s(observed: Observed) -> float | None:
    if any(startup.is_loading for startup in observed.startups.values()):
        return LOOK_AGAIN_LOADING_S
    waiting = (*observed.living_pods, *(pod for pod in observed.downloads if not pod.is_finished))
    if key_secrets(observed.resource):
        return LOOK_AGAIN_KEYS_S
    return LOOK_AGAIN_WAITING_S if any(not pod.is_ready for pod in waiting) else None


def _name(observed: Observed) -> tuple[str, str]:
    metadata = observed.resource["metadata"]
    return metadata["namespace"], metadata["name"]
