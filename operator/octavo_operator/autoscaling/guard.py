"""The pending guard: while replicas load or find no room, more of them would only wait beside them.

Pure. A replica that has failed, or that was ready and is no more, does not count: it may never come (back), and must not
keep those that serve from getting help.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from octavo_operator.api import reasons
from octavo_operator.api.types import ModelDeployment
from octavo_operator.diagnosis import diagnose_deployment, diagnose_pod
from octavo_operator.finding import Finding, worst
from octavo_operator.observed import Observed, Pod, replicas_of

_FAILED = reasons.SERVER_REASONS - {reasons.DOWNLOAD_STALLED}
"""What a server ends with: it is no longer on its way."""


def find_blocker(resource: ModelDeployment, observed: Observed) -> str:
    """What replicas that were asked for wait for, one sentence; "" where all that can come are there."""
    found = worst(_findings(resource, observed))
    if found is not None:
        return found.sentence
    missing = sum(map(replicas_of, observed.deployments.values())) - len(observed.living_pods)
    if missing <= 0:
        return ""
    return "1 pod is being made" if missing == 1 else f"{missing} pods are being made"


def _findings(resource: ModelDeployment, observed: Observed) -> Iterator[Finding]:
    for deployment in observed.deployments.values():
        refusal = diagnose_deployment(deployment)
        if refusal is not None:
            yield refusal
    for pod in observed.living_pods:
        finding = _diagnose(pod, resource, observed)
        if finding is not None and finding.reason not in _FAILED and not pod.has_fallen:
            yield finding


def _diagnose(pod: Pod, resource: ModelDeployment, observed: Observed) -> Finding | None:
    """As the Ready condition has it, without the bytes and seconds that change at every look."""
    startup = observed.startups.get(pod.name)
    if startup is not None:
        startup = replace(startup, done_bytes=0, total_bytes=0, bytes_per_second=0, idle_s=0.0)
    return diagnose_pod(pod, startup, observed.nodes, resource.spec.resources.gpu.resource_name)
