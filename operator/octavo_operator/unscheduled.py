"""Why a pod has no node: the scheduler's message, and what the nodes offer, as one reason and one sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Decimal

from octavo_operator.api import reasons
from octavo_operator.api.quantity import parse_quantity
from octavo_operator.api.types import PRODUCT_LABELS, is_slice
from octavo_operator.finding import Finding, quote
from octavo_operator.observed import Node, Pod

MOST_KINDS = 5
"""Products or slices that a sentence lists."""
_LABELLERS = {"nvidia.com": "GPU feature discovery", "amd.com": "AMD's node labeller"}
_VOLUME_WORDS = (
    "persistentvolumeclaim",
    "volume node affinity conflict",
    "volume zone",
    "didn't find available persistent",
)
_CLAIM_WORDS = ("resourceclaim", "resource claim", "device class")
_TABLE = (
    ("insufficient ", reasons.INSUFFICIENT_RESOURCES, "finds no node with enough room"),
    ("node affinity/selector", reasons.NODE_SELECTOR_MISMATCH, "finds no node that placement allows"),
    ("untolerated taint", reasons.TAINT_NOT_TOLERATED, "finds only nodes with taints that placement does not tolerate"),
)


def diagnose_unscheduled(pod: Pod, nodes: tuple[Node, ...] | None, gpu: str) -> Finding:
    """`gpu` is the extended resource that stands for one GPU; `nodes` is None where they may not be listed."""
    message = str(pod.condition("PodScheduled").get("message", ""))
    lowered = message.lower()
    missing = _missing_product(pod, nodes or ())
    if missing:
        return Finding(reason=reasons.NODE_SELECTOR_MISMATCH, sentence=missing)
    if pod.claims_to_come:
        return Finding(reason=reasons.RESOURCE_CLAIM_PENDING, sentence=_claims_sentence(pod))
    if "cannot allocate all claims" in lowered:
        what = f"no node has devices free for the claims of pod {pod.name} ({_templates(pod.claims)}): {quote(message)}"
        return Finding(reason=reasons.INSUFFICIENT_GPU, sentence=what)
    if f"insufficient {gpu}".lower() in lowered:
        return Finding(reason=reasons.INSUFFICIENT_GPU, sentence=_gpu_sentence(pod, nodes, gpu))
    if any(words in lowered for words in _VOLUME_WORDS):
        return Finding(reason=reasons.VOLUME_UNBOUND, sentence=f"pod {pod.name} waits for its volume: {quote(message)}")
    if any(words in lowered for words in _CLAIM_WORDS):
        what = f"pod {pod.name} waits for its claims ({_templates(pod.claims)}): {quote(message)}"
        return Finding(reason=reasons.RESOURCE_CLAIM_PENDING, sentence=what)
    for words, reason, what in _TABLE:
        if words in lowered:
            return Finding(reason=reason, sentence=f"pod {pod.name} {what}: {quote(message)}")
    return Finding(reason=reasons.UNSCHEDULABLE, sentence=f"pod {pod.name} has no node: {quote(message)}")


def _missing_product(pod: Pod, nodes: Iterable[Node]) -> str:
    """Which product of GPUs the pod asks for that no node has; "" where one has it, or none is asked for."""
    vendor, product = _product_of(pod)
    label = PRODUCT_LABELS.get(vendor, "")
    found = Counter(node.labels.get(label, "") for node in nodes)
    if not product or not found or product in found:
        return ""
    needs = f"pod {pod.name} needs a node with {product}, none of {found.total()} is one"
    del found[""]
    if not found:
        return f"{needs}; no node bears the label {label}, is {_LABELLERS[vendor]} installed?"
    return f"{needs}; the cluster has {_listed(found)}"


def _product_of(pod: Pod) -> tuple[str, str]:
    """(vendor, product) of the GPUs that the pod asks for; empty where any will do."""
    asked = ((vendor, pod.node_selector.get(label, "")) for vendor, label in PRODUCT_LABELS.items())
    return next((found for found in asked if found[1]), ("", ""))


def _claims_sentence(pod: Pod) -> str:
    missing = pod.claims_to_come
    are = "is its ResourceClaimTemplate" if len(missing) == 1 else "are their ResourceClaimTemplates"
    return (
        f"pod {pod.name} waits for claims that are not made yet ({_templates(missing)}); "
        f"{are} in namespace {pod.namespace}?"
    )


def _templates(claims: Mapping[str, str]) -> str:
    return ", ".join(f"{name} of {template}" for name, template in claims.items())


def _gpu_sentence(pod: Pod, nodes: tuple[Node, ...] | None, gpu: str) -> str:
    wanted = _gpus_of(pod, gpu)
    needs, free = f"pod {pod.name} needs {wanted} {gpu}", "one free" if wanted == "1" else "as many free"
    if nodes is None:
        return f"{needs}, no node has {free}"
    offering = [node for node in nodes if _offers(node, gpu)]
    if not offering:
        return f"{needs}, none of {len(nodes)} nodes offers {gpu}; {_instead(nodes, gpu)}"
    vendor, product = _product_of(pod)
    fitting = [node for node in offering if not product or node.labels.get(PRODUCT_LABELS[vendor]) == product]
    kind = f"nodes with {product}" if product else "nodes with such slices" if is_slice(gpu) else "GPU nodes"
    parts = ", ".join(f"{count} {word}" for count, word in _counts(fitting, gpu, wanted) if count)
    return f"{needs}, 0 of {len(fitting)} {kind} have {free} ({parts})"


def _counts(nodes: list[Node], gpu: str, wanted: str) -> tuple[tuple[int, str], ...]:
    """How many of the nodes that offer it cannot give as much, by why."""
    cordoned = sum(node.is_cordoned for node in nodes)
    tainted = sum(node.has_taints and not node.is_cordoned for node in nodes)
    open_ones = [node for node in nodes if not node.is_cordoned and not node.has_taints]
    small = sum(_number(node.capacity[gpu]) < _number(wanted) for node in open_ones)
    return (
        (len(open_ones) - small, "full" if wanted == "1" else "with fewer free"),
        (small, f"with fewer than {wanted} in all"),
        (cordoned, "cordoned"),
        (tainted, "tainted or full"),
    )


def _instead(nodes: tuple[Node, ...], gpu: str) -> str:
    """What a cluster without such devices has, or should have."""
    if not is_slice(gpu):
        return "is its device plugin installed?"
    vendor = gpu.partition("/")[0]
    names = Counter(
        name
        for node in nodes
        for name in node.capacity
        if name.startswith(f"{vendor}/") and (is_slice(name) or name.endswith("/gpu")) and _offers(node, name)
    )
    have = f"they have {_listed(names)}; " if names else ""
    return f"{have}are GPUs divided so, and does the device plugin name slices (strategy mixed)?"


def _offers(node: Node, resource: str) -> bool:
    return node.capacity.get(resource, "0") != "0"


def _listed(found: Mapping[str, int]) -> str:
    """The most frequent kinds, each with its number of nodes."""
    kinds = sorted(found.items(), key=lambda kind: (-kind[1], kind[0]))
    more = f" and {len(kinds) - MOST_KINDS} more" if len(kinds) > MOST_KINDS else ""
    return ", ".join(f"{name} ({count})" for name, count in kinds[:MOST_KINDS]) + more


def _gpus_of(pod: Pod, gpu: str) -> str:
    containers = pod.raw.get("spec", {}).get("containers", [])
    limits = (container.get("resources", {}).get("limits", {}) for container in containers)
    return next((str(limit[gpu]) for limit in limits if gpu in limit), "1")


def _number(quantity: str) -> Decimal:
    return parse_quantity(quantity) or Decimal(0)
