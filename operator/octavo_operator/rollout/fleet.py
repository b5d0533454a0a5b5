"""The pods of one revision as numbers: all that a strategy needs to know of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from octavo_operator.api.quantity import parse_quantity
from octavo_operator.api.types import JsonObject
from octavo_operator.observed import Node, Observed, Pod, refusal_of, replicas_of

_ROOM_WORDS = ("insufficient ", "too many pods", "free ports", "cannot allocate all claims", "readwriteoncepod")
"""What the scheduler says where a pod would fit if another left; a wrong node selector is no such thing."""

_QUOTA = re.compile(r"exceeded quota: .*?requested: (\S+), used: \S+, limited: (\S+)")
"""What the API server says where a ResourceQuota leaves no room; amounts such as pods=1,requests.nvidia.com/gpu=2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    count: int = 0
    """`spec.replicas` of its Deployment, 0 where there is none."""
    existing: int = 0
    """Pods that have not ended, those that drain included, without those that are lost."""
    placed: int = 0
    """Pods that live on a node."""
    ready: int = 0
    lacks_room: bool = False
    """A pod waits for a node, or the cluster refuses to make one."""
    wants_room: bool = False
    """A pod has not been made or placed for want of room that another pod may have."""


def count_fleet(observed: Observed, revision: str, *, now: datetime) -> Fleet:
    deployment = observed.deployments.get(revision)
    pods = [pod for pod in observed.pods if pod.revision == revision and not pod.is_finished and not pod.is_lost(now)]
    living = [pod for pod in pods if not pod.is_terminating]
    return Fleet(
        count=replicas_of(deployment) if deployment else 0,
        existing=len(pods),
        placed=sum(not pod.waits_for_node for pod in living),
        ready=len(observed.ready_pods(revision)),
        lacks_room=observed.lacks_room(revision),
        wants_room=wants_room(observed, revision),
    )


def wants_room(observed: Observed, revision: str) -> bool:
    """Whether a pod of it has not been made or placed for want of room that another pod may have."""
    living = (pod for pod in observed.living_pods if pod.revision == revision)
    is_over_quota = _is_over_quota(refusal_of(observed.deployments.get(revision, {})))
    return is_over_quota or any(_wants_room(pod, observed.nodes) for pod in living)


def _is_over_quota(refusal: JsonObject | None) -> bool:
    """False for a pod that is refused for what it is, or that asks for more than the quota has in all."""
    said = _QUOTA.search(str((refusal or {}).get("message", "")))
    if said is None:
        return False
    requested, limited = map(_amounts, said.groups())
    return all(amount <= limited.get(name, amount) for name, amount in requested.items())


def _amounts(text: str) -> dict[str, Decimal]:
    pairs = (pair.partition("=") for pair in text.split(","))
    return {name: _number(amount) for name, _, amount in pairs}


def _wants_room(pod: Pod, nodes: tuple[Node, ...] | None) -> bool:
    """False for a pod that has its node, or that would find none on an empty cluster either."""
    said = str(pod.condition("PodScheduled").get("message", "")).lower()
    if not pod.waits_for_node or not any(words in said for words in _ROOM_WORDS):
        return False
    return nodes is None or any(_could_take(node, pod) for node in nodes)


def _could_take(node: Node, pod: Pod) -> bool:
    """Whether an empty node were large enough, and is one that the pod may go to."""
    is_meant = pod.node_selector.items() <= node.labels.items() and not node.is_cordoned
    return is_meant and all(amount <= _number(node.capacity.get(name, "0")) for name, amount in _requests(pod).items())


def _requests(pod: Pod) -> dict[str, Decimal]:
    """What its containers ask of a node together; a limit without a request is one."""
    total: dict[str, Decimal] = {}
    for container in pod.raw.get("spec", {}).get("containers", ()):
        resources = container.get("resources") or {}
        for name, quantity in {**(resources.get("limits") or {}), **(resources.get("requests") or {})}.items():
            total[name] = total.get(name, Decimal(0)) + _number(str(quantity))
    return total


def _number(quantity: str) -> Decimal:
    return parse_quantity(quantity) or Decimal(0)
