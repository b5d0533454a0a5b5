"""`doctor` on GPUs: what nodes offer, what device plugins do, and whether any node could hold a replica. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from octavo_operator.api.types import PRODUCT_LABELS, Gpu
from octavo_operator.api.validation import parse_spec
from octavo_operator.errors import SpecInvalidError

from .cluster import Json
from .facts import Facts, Outcome
from .resources import labels_of, name_of, namespace_of, status_of

_GPU_RESOURCE = re.compile(r"^(nvidia\.com/(gpu|mig-.+)|amd\.com/(gpu|[a-z]px_.+)|gpu\.intel\.com/.+)$")
_GPU_LABELS = ("nvidia.com/gpu.present", "amd.com/gpu.present", "feature.node.kubernetes.io/pci-10de.present")
_DEVICE_PLUGINS = ("nvidia-device-plugin", "amdgpu-device-plugin", "intel-gpu-plugin", "gpu-operator")


def is_gpu(resource: str) -> bool:
    """Whether the extended resource is a GPU or a slice of one."""
    return _GPU_RESOURCE.match(resource) is not None


def gpus_of(model: Json) -> Gpu | None:
    """What a replica gets; None where the spec cannot be read."""
    try:
        return parse_spec(model["spec"]).resources.gpu
    except SpecInvalidError:
        return None


def check_gpus(facts: Facts) -> Outcome:
    if facts.nodes is None:
        return Outcome(level="skip", check="GPUs", message="nodes may not be listed")
    offered = _offered(facts.nodes)
    if offered:
        used = _used(facts.pods or ())
        kinds = [
            f"{total} {name} on {number} {'node' if number == 1 else 'nodes'}"
            + (f" ({total - used.get(name, 0)} free)" if facts.pods is not None else "")
            for name, (total, number) in sorted(offered.items())
        ]
        return Outcome(level="ok", check="GPUs", message=", ".join(kinds) + _products(facts.nodes))
    labelled = [name_of(node) for node in facts.nodes if any(labels_of(node).get(key) == "true" for key in _GPU_LABELS)]
    plugins = [name_of(each) for each in _plugins(facts)]
    if labelled or plugins:
        why = f"{', '.join(labelled)} have GPUs" if labelled else f"the device plugin {plugins[0]} is installed"
        return Outcome(
            level="fail",
            check="GPUs",
            message=f"{why}, but no node offers any",
            remedy="see the device plugin's pods and the drivers: kubectl describe node; NVIDIA's GPU operator installs both",
        )
    return Outcome(
        level="warn",
        check="GPUs",
        message="no node offers a GPU",
        remedy="install a device plugin, or set resources.gpu.count: 0 to serve on CPUs",
    )


def check_device_plugins(facts: Facts) -> Iterable[Outcome]:
    """One outcome for each that is known by its name."""
    for plugin in _plugins(facts):
        status = status_of(plugin)
        ready, wanted = int(status.get("numberReady") or 0), int(status.get("desiredNumberScheduled") or 0)
        where = f"{namespace_of(plugin)}/{name_of(plugin)}"
        if ready < wanted:
            yield Outcome(
                level="warn",
                check="device plugin",
                message=f"{where}: {ready} of {wanted} pods ready; the GPUs of the other nodes are not offered",
                remedy=f"kubectl -n {namespace_of(plugin)} describe daemonset {name_of(plugin)}, and the logs of its pods",
            )
        else:
            yield Outcome(level="ok", check="device plugin", message=f"{where}: {ready} of {wanted} pods ready")


def check_sizes(facts: Facts) -> Iterable[Outcome]:
    """Of each model that no node could hold a replica of, were it empty."""
    for model in facts.models if facts.nodes is not None else ():
        gpu = gpus_of(model)
        if gpu is None or gpu.count == 0 or gpu.claims:
            continue
        trouble, remedy = _too_large(gpu, facts.nodes or ())
        if trouble:
            yield Outcome(
                level="warn",
                check=f"GPUs of {name_of(model)}",
                message=trouble,
                remedy=f"{remedy}; an autoscaler of nodes may bring such a node",
            )


def check_claims(facts: Facts) -> Iterable[Outcome]:
    """Of each model whose devices are claimed: whether the templates of the claims are there."""
    there = [name_of(each) for each in facts.claim_templates or ()]
    for model in facts.models:
        gpu = gpus_of(model)
        if gpu is None or not gpu.claims:
            continue
        check = f"claims of {name_of(model)}"
        missing = [claim.template for claim in gpu.claims if claim.template not in there]
        if not facts.serves_claims:
            yield Outcome(
                level="fail",
                check=check,
                message="resource.k8s.io/v1 is not served, so that pods get no devices",
                remedy="upgrade to Kubernetes 1.34 or later, or ask for GPUs by resources.gpu.resourceName",
            )
        elif facts.claim_templates is None:
            yield Outcome(level="skip", check=check, message="ResourceClaimTemplates may not be listed")
        elif missing:
            yield Outcome(
                level="fail",
                check=check,
                message=f"namespace {facts.namespace} has no ResourceClaimTemplate {', '.join(missing)}"
                f"; it has {', '.join(there) or 'none'}",
                remedy="make it there: pods wait for claims that are made from it",
            )
        else:
            yield Outcome(level="ok", check=check, message=f"{len(gpu.claims)} made from templates that are there")


def _too_large(gpu: Gpu, nodes: Sequence[Json]) -> tuple[str, str]:
    """(what is wrong, what to do); empty where some node that takes pods is large enough."""
    label = gpu.product_label
    meant = [node for node in nodes if not gpu.product or labels_of(node).get(label) == gpu.product]
    if not meant:
        return f"no node has the product {gpu.product}{_products(nodes)}", f"see kubectl get nodes -L {label}"
    sizes = {
        name_of(node): int((status_of(node).get("allocatable") or {}).get(gpu.resource_name, "0"))
        for node in meant
        if not node["spec"].get("unschedulable")
    }
    largest = max(sizes, key=lambda name: sizes[name], default="")
    if largest and sizes[largest] >= gpu.count:
        return "", ""
    most = f"the largest, {largest}, has {sizes[largest]}" if largest else "none takes pods"
    kind = f" of {gpu.product}" if gpu.product else ""
    return (
        f"a replica needs {gpu.count} {gpu.resource_name} of one node{kind}; {most}",
        f"lower resources.gpu.count, or add a node with {gpu.count}",
    )


def _products(nodes: Sequence[Json]) -> str:
    """What nodes say that their GPUs are; empty where none says it."""
    labels = [labels_of(node) for node in nodes]
    found = Counter(each[label] for each in labels for label in PRODUCT_LABELS.values() if each.get(label))
    listed = ", ".join(f"{product} ({count})" for product, count in sorted(found.items()))
    return f"; products by nodes: {listed}" if found else ""


def _plugins(facts: Facts) -> list[Json]:
    return [each for each in facts.daemon_sets or () if any(word in name_of(each) for word in _DEVICE_PLUGINS)]


def _offered(nodes: Sequence[Json]) -> dict[str, tuple[int, int]]:
    """Resource name → (devices, nodes) on nodes that take pods."""
    found: dict[str, tuple[int, int]] = {}
    for node in nodes:
        if node["spec"].get("unschedulable"):
            continue
        for name, count in (status_of(node).get("allocatable") or {}).items():
            if is_gpu(name) and int(count):
                total, number = found.get(name, (0, 0))
                found[name] = total + int(count), number + 1
    return found


def _used(pods: Sequence[Json]) -> dict[str, int]:
    used: dict[str, int] = {}
    for pod in pods:
        if not pod["spec"].get("nodeName") or status_of(pod).get("phase") in ("Succeeded", "Failed"):
            continue
        for container in pod["spec"].get("containers", ()):
            for name, count in ((container.get("resources") or {}).get("limits") or {}).items():
                if is_gpu(name):
                    used[name] = used.get(name, 0) + int(count)
    return used
