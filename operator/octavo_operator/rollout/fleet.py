"""The pods of one revision as numbers: all that a strategy needs to know of them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from octavo_operator.api.quantity import parse_quantity
from octavo_operator.observed import Node, Observed, Pod, refusal_of, replicas_of

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
        wants_room=refusal_of(deployment or {}) is not None or any(_wants_room(pod, observed.nodes) for pod in living),
    )


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
