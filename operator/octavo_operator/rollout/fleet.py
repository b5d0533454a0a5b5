"""The pods of one revision as numbers: all that a strategy needs to know of them."""

from __future__ import annotations

from dataclasses import dataclass

from octavo_operator.api.types import JsonObject
from octavo_operator.observed import Observed, refusal_of, replicas_of

_ROOM_WORDS = ("insufficient ", "too many pods", "free ports", "cannot allocate all claims", "readwriteoncepod")
"""What the scheduler says where a pod would fit if another left; a wrong node selector is no such thing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    count: int = 0
    """`spec.replicas` of its Deployment, 0 where there is none."""
    existing: int = 0
    """Pods that have not ended, those that drain included."""
    placed: int = 0
    """Pods that live on a node."""
    ready: int = 0
    lacks_room: bool = False
    """A pod waits for a node, or the cluster refuses to make one."""
    wants_room: bool = False
    """A pod has not been made or placed for want of room that another pod may have."""


def count_fleet(observed: Observed, revision: str) -> Fleet:
    deployment = observed.deployments.get(revision)
    pods = [pod for pod in observed.pods if pod.revision == revision and not pod.is_finished]
    living = [pod for pod in pods if not pod.is_terminating]
    return Fleet(
        count=replicas_of(deployment) if deployment else 0,
        existing=len(pods),
        placed=sum(not pod.waits_for_node for pod in living),
        ready=len(observed.ready_pods(revision)),
        lacks_room=observed.lacks_room(revision),
        wants_room=refusal_of(deployment or {}) is not None
        or any(_wants_room(pod.condition("PodScheduled")) for pod in living),
    )


def _wants_room(scheduled: JsonObject) -> bool:
    """False for a pod that has its node, or that would find none on an empty cluster either."""
    said = str(scheduled.get("message", "")).lower()
    return scheduled.get("status") == "False" and any(words in said for words in _ROOM_WORDS)
