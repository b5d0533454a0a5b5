"""The pending guard: while replicas load or find no room, more of them would only wait beside them.

Pure. What may never come must not keep those that serve from getting help. So these do not count:

| what | because |
|---|---|
| a revision that the gateway does not route to | it may be broken, and then its rollout is stuck for good |
| a replica that has failed, or was ready and is no more | it may never come (back) |
| one that its node has failed to make for `NODE_PATIENCE_S` | where others serve, that may be this node's fault alone |

A replica without a node counts for as long as it has none: the next one would be just like it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from octavo_operator.api import reasons
from octavo_operator.api.rollout_status import RolloutStatus, parse_time
from octavo_operator.api.types import JsonObject, ModelDeployment
from octavo_operator.diagnosis import diagnose_deployment, diagnose_pod
from octavo_operator.finding import Finding, worst
from octavo_operator.observed import Observed, Pod, replicas_of

NODE_PATIENCE_S = 300.0
"""So long a node may fail to pull an image or to make a container; the kubelet has then tried about eight times."""
_FAILED = reasons.SERVER_REASONS - {reasons.DOWNLOAD_STALLED}
"""What a server ends with: it is no longer on its way."""
_OF_THE_NODE = frozenset({reasons.IMAGE_PULL_FAILED, reasons.POD_REFUSED})
"""What may fail on one node and not on the next."""


def find_blocker(resource: ModelDeployment, observed: Observed, *, now: datetime) -> str:
    """What replicas that were asked for wait for, one sentence; "" where all that can come are there."""
    admitted = _admitted(observed)
    found = worst(_findings(resource, observed, admitted, now))
    if found is not None:
        return found.sentence
    missing = sum(_missing(revision, deployment, observed) for revision, deployment in admitted.items())
    if not missing:
        return ""
    return "1 pod is being made" if missing == 1 else f"{missing} pods are being made"


def _admitted(observed: Observed) -> dict[str, JsonObject]:
    """Deployments that the gateway routes to, by revision; all of them before anybody has said."""
    admitted = RolloutStatus.read(observed.status).admitted
    return {name: found for name, found in observed.deployments.items() if not admitted or name in admitted}


def _missing(revision: str, deployment: JsonObject, observed: Observed) -> int:
    """Pods that are asked for and not made yet."""
    return max(0, replicas_of(deployment) - sum(pod.revision == revision for pod in observed.living_pods))


def _findings(
    resource: ModelDeployment, observed: Observed, admitted: dict[str, JsonObject], now: datetime
) -> Iterator[Finding]:
    for deployment in admitted.values():
        refusal = diagnose_deployment(deployment)
        if refusal is not None:
            yield refusal
    for pod in observed.living_pods:
        finding = _diagnose(pod, resource, observed) if pod.revision in admitted else None
        if finding is None or finding.reason in _FAILED or pod.has_fallen:
            continue
        if finding.reason in _OF_THE_NODE and observed.ready_pods(pod.revision) and _is_given_up(pod, now):
            continue
        yield finding


def _is_given_up(pod: Pod, now: datetime) -> bool:
    since = parse_time(pod.condition("PodScheduled").get("lastTransitionTime") or pod.created)
    return since is not None and now - since >= timedelta(seconds=NODE_PATIENCE_S)


def _diagnose(pod: Pod, resource: ModelDeployment, observed: Observed) -> Finding | None:
    """As the Ready condition has it, without the bytes and seconds that change at every look."""
    startup = observed.startups.get(pod.name)
    if startup is not None:
        startup = replace(startup, done_bytes=0, total_bytes=0, bytes_per_second=0, idle_s=0.0)
    return diagnose_pod(pod, startup, observed.nodes, resource.spec.resources.gpu.resource_name)
