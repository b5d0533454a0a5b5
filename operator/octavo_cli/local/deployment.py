"""One ModelDeployment on this machine: its replicas, its status by the operator's rules, and its line in the routing table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from octavo_gateway import endpoints
from octavo_gateway.quota import Limits
from octavo_operator.api import reasons
from octavo_operator.api.types import Access
from octavo_operator.conditions import READY, Condition, make_conditions
from octavo_operator.desired.render import Desired
from octavo_operator.observed import Node, Observed

from .manifests import Manifest
from .replica import REVISION, Replica, startups_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is shown of a model; the same words as `kubectl get mdl`."""

    model: str
    ready: bool
    num_ready: int
    replicas: int
    reason: str
    message: str
    restarts: int


class LocalDeployment:
    """Reads its replicas' facts; changes nothing but which of them runs."""

    def __init__(self, manifest: Manifest, replicas: Sequence[Replica], gpus: Sequence[str]) -> None:
        self.manifest = manifest
        self.replicas = list(replicas)
        self.is_draining = False
        self._gpus = gpus

    @property
    def drain_timeout_s(self) -> float:
        return float(self.manifest.resource.spec.drain_timeout_s)

    @property
    def row(self) -> Row:
        ready = self._ready_condition()
        return Row(
            model=self.manifest.resource.name,
            ready=ready.status is True,
            num_ready=sum(replica.is_ready for replica in self.replicas),
            replicas=len(self.replicas),
            reason=ready.reason,
            message=ready.message,
            restarts=sum(replica.restarts for replica in self.replicas),
        )

    def routing(self, *, created_s: float) -> endpoints.Model:
        """For the gateway; a draining deployment is switched off, so that nobody waits for it."""
        resource = self.manifest.resource
        is_off = self.is_draining or not self.replicas
        return endpoints.Model(
            key=self.manifest.key,
            served_names=resource.served_names,
            created_s=created_s,
            strategy=endpoints.resolve_strategy(
                resource.spec.routing.strategy, prefix_caching=resource.spec.engine.prefix_caching
            ),
            access=_access(resource.spec.access),
            service_url=self.replicas[0].url if self.replicas else "",
            max_held=resource.spec.routing.max_held_requests,
            hold_timeout_s=resource.spec.routing.hold_timeout_s,
            is_scaled_to_zero=is_off,
            replicas=()
            if is_off
            else tuple(
                endpoints.Replica(url=replica.url, pod=replica.name, ready=replica.is_ready)
                for replica in self.replicas
            ),
        )

    def _ready_condition(self) -> Condition:
        resource = self.manifest.resource
        if self.is_draining:
            left = sum(replica.pid is not None for replica in self.replicas)
            message = f"{left} of {len(self.replicas)} replicas still finish what runs"
            return Condition(kind=READY, status=False, reason=reasons.DRAINING, message=message)
        if resource.spec.suspend:
            message = "suspend is true; nothing is started here"
            return Condition(kind=READY, status=False, reason=reasons.SUSPENDED, message=message)
        desired = Desired(revision=REVISION, replicas=len(self.replicas), objects=())
        observed = Observed(
            resource=self.manifest.raw,
            pods=tuple(replica.pod for replica in self.replicas),
            startups=startups_of(self.replicas),
            nodes=(Node(name="this machine", is_cordoned=False, has_taints=False, capacity=self._capacity),),
        )
        conditions = make_conditions(resource, desired, observed)
        ready = next(condition for condition in conditions if condition.kind == READY)
        return Condition(
            kind=READY, status=ready.status, reason=ready.reason, message=self._without_pods(ready.message)
        )

    @property
    def _capacity(self) -> Mapping[str, str]:
        return {self.manifest.resource.spec.resources.gpu.resource_name: str(len(self._gpus))}

    def _without_pods(self, message: str) -> str:
        """The operator's sentences speak of pods; here a replica is a process and goes by its own name."""
        for replica in self.replicas:
            message = message.replace(f"pod {replica.name}", replica.name)
        return message


def _access(access: Access) -> endpoints.Access:
    limits = Limits(per_minute=access.tokens_per_minute, per_day=access.tokens_per_day)
    return endpoints.Access(keys_from=access.keys_from, limits=limits, audit=endpoints.Audit(access.audit))
