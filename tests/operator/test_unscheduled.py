"""Why a pod has no node: the scheduler's words beside what the nodes offer."""

from __future__ import annotations

import pytest

from octavo_operator.api import reasons
from octavo_operator.finding import Finding
from octavo_operator.observed import Node, Pod
from octavo_operator.unscheduled import MOST_KINDS, diagnose_unscheduled
from octavo_testing.control_plane import a_node, a_pod

GPU = "nvidia.com/gpu"
PRODUCT = "nvidia.com/gpu.product"
SLICE = "nvidia.com/mig-1g.10gb"
NO_MATCH = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."


def found(pod: Pod, *, nodes: tuple[Node, ...] | None = None, gpu: str = GPU) -> Finding:
    return diagnose_unscheduled(pod, nodes, gpu)


SCHEDULER_WORDS = {
    "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.": reasons.INSUFFICIENT_GPU,
    "0/3 nodes are available: 1 Insufficient nvidia.com/gpu, 2 node(s) had untolerated taint {x: }": reasons.INSUFFICIENT_GPU,
    "0/3 nodes are available: 3 Insufficient memory.": reasons.INSUFFICIENT_RESOURCES,
    "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.": reasons.NODE_SELECTOR_MISMATCH,
    "0/1 nodes are available: 1 node(s) had untolerated taint {gpu: true}.": reasons.TAINT_NOT_TOLERATED,
    'persistentvolumeclaim "weights" not found': reasons.VOLUME_UNBOUND,
    "pod has unbound immediate PersistentVolumeClaims": reasons.VOLUME_UNBOUND,
    "0/1 nodes are available: 1 node(s) did something new.": reasons.UNSCHEDULABLE,
}


@pytest.mark.parametrize(("words", "reason"), SCHEDULER_WORDS.items())
def test_schedulers_words_become_a_reason(words: str, reason: str) -> None:
    finding = found(a_pod(unschedulable=words))

    assert finding.reason == reason
    assert "qwen-abc-1" in finding.sentence


def test_want_of_gpus_is_told_in_numbers() -> None:
    nodes = (
        a_node("a", gpus=8),
        a_node("b", gpus=8),
        a_node("c", gpus=8, cordoned=True),
        a_node("d", gpus=8, tainted=True),
        a_node("cpu"),
    )

    finding = found(a_pod(unschedulable="0/5 nodes: 4 Insufficient nvidia.com/gpu"), nodes=nodes)

    assert finding.sentence == (
        "pod qwen-abc-1 needs 1 nvidia.com/gpu, 0 of 4 GPU nodes have one free (2 full, 1 cordoned, 1 tainted or full)"
    )


def test_want_of_several_gpus_tells_apart_nodes_that_are_too_small() -> None:
    nodes = (a_node("a", gpus=8), a_node("b", gpus=2), a_node("c", gpus=4), a_node("d", gpus=2, cordoned=True))
    pod = a_pod(unschedulable="0/4 nodes: 4 Insufficient nvidia.com/gpu")
    pod.raw["spec"]["containers"] = [{"name": "server", "resources": {"limits": {"nvidia.com/gpu": "4"}}}]

    assert found(pod, nodes=nodes).sentence == (
        "pod qwen-abc-1 needs 4 nvidia.com/gpu, 0 of 4 GPU nodes have as many free "
        "(2 with fewer free, 1 with fewer than 4 in all, 1 cordoned)"
    )
    assert found(pod).sentence == "pod qwen-abc-1 needs 4 nvidia.com/gpu, no node has as many free"


def test_cluster_without_gpus_is_told() -> None:
    pod = a_pod(unschedulable="0/2 nodes: 2 Insufficient nvidia.com/gpu")

    assert "none of 2 nodes offers nvidia.com/gpu" in found(pod, nodes=(a_node(), a_node("b"))).sentence
    assert found(pod).sentence == "pod qwen-abc-1 needs 1 nvidia.com/gpu, no node has one free"


def of_product(product: str, words: str = NO_MATCH, *, label: str = PRODUCT) -> Pod:
    pod = a_pod(unschedulable=words)
    pod.raw["spec"]["nodeSelector"] = {"disk": "fast", label: product}
    return pod


def test_a_product_that_no_node_has_is_told_beside_those_that_there_are() -> None:
    nodes = (
        *(a_node(f"l4-{number}", gpus=1, labels={PRODUCT: "NVIDIA-L4"}) for number in range(3)),
        a_node("a100", gpus=8, labels={PRODUCT: "NVIDIA-A100-SXM4-80GB"}),
        a_node("cpu"),
    )

    finding = found(of_product("NVIDIA-H200"), nodes=nodes)

    assert finding.reason == reasons.NODE_SELECTOR_MISMATCH
    assert finding.sentence == (
        "pod qwen-abc-1 needs a node with NVIDIA-H200, none of 5 is one; "
        "the cluster has NVIDIA-L4 (3), NVIDIA-A100-SXM4-80GB (1)"
    )


def test_a_product_is_told_even_where_taints_hide_it_from_the_scheduler() -> None:
    words = "0/1 nodes are available: 1 node(s) had untolerated taint {nvidia.com/gpu: }."
    nodes = (a_node("l4", gpus=1, tainted=True, labels={PRODUCT: "NVIDIA-L4"}),)

    assert found(of_product("NVIDIA-H200", words), nodes=nodes).reason == reasons.NODE_SELECTOR_MISMATCH


@pytest.mark.parametrize(
    ("label", "labeller"),
    [(PRODUCT, "GPU feature discovery"), ("amd.com/gpu.product-name", "AMD's node labeller")],
)
def test_a_cluster_that_labels_no_products_is_told(label: str, labeller: str) -> None:
    finding = found(of_product("X", label=label), nodes=(a_node("a", gpus=1), a_node("b")))

    assert finding.sentence == (
        f"pod qwen-abc-1 needs a node with X, none of 2 is one; no node bears the label {label}, is {labeller} installed?"
    )


def test_a_sentence_lists_few_products() -> None:
    nodes = tuple(a_node(f"n{number}", labels={PRODUCT: f"P{number}"}) for number in range(MOST_KINDS + 2))

    assert found(of_product("X"), nodes=nodes).sentence.endswith("P4 (1) and 2 more")


def test_a_product_that_is_there_is_counted_alone() -> None:
    nodes = (
        a_node("a", gpus=8, labels={PRODUCT: "NVIDIA-H200"}),
        a_node("b", gpus=8, labels={PRODUCT: "NVIDIA-H200"}, cordoned=True),
        a_node("c", gpus=8, labels={PRODUCT: "NVIDIA-L4"}),
    )
    words = (
        "0/3 nodes are available: 1 Insufficient nvidia.com/gpu, 1 node(s) didn't match Pod's node affinity/selector."
    )

    finding = found(of_product("NVIDIA-H200", words), nodes=nodes)

    assert finding.reason == reasons.INSUFFICIENT_GPU
    assert finding.sentence == (
        "pod qwen-abc-1 needs 1 nvidia.com/gpu, 0 of 2 nodes with NVIDIA-H200 have one free (1 full, 1 cordoned)"
    )
    assert found(of_product("NVIDIA-H200"), nodes=nodes).sentence.startswith(
        "pod qwen-abc-1 finds no node that placement allows"
    )


def test_nothing_is_said_of_products_where_nodes_may_not_be_listed() -> None:
    assert found(of_product("X")).sentence == f"pod qwen-abc-1 finds no node that placement allows: {NO_MATCH}"


def of_slice() -> Pod:
    pod = a_pod(unschedulable=f"0/2 nodes are available: 2 Insufficient {SLICE}.")
    pod.raw["spec"]["containers"] = [{"name": "server", "resources": {"limits": {SLICE: "1"}}}]
    return pod


def test_want_of_a_slice_speaks_of_slices() -> None:
    nodes = (a_node("a", offers={SLICE: "7"}), a_node("b", offers={SLICE: "7"}, cordoned=True), a_node("c", gpus=8))

    assert found(of_slice(), nodes=nodes, gpu=SLICE).sentence == (
        f"pod qwen-abc-1 needs 1 {SLICE}, 0 of 2 nodes with such slices have one free (1 full, 1 cordoned)"
    )


def test_slices_that_no_node_has_are_told_beside_those_that_there_are() -> None:
    other = {"nvidia.com/mig-3g.40gb": "2", SLICE: "0", "nvidia.com/other": "1", "amd.com/gpu": "8"}
    nodes = (a_node("a", offers=other), a_node("b", gpus=8))

    assert found(of_slice(), nodes=nodes, gpu=SLICE).sentence == (
        f"pod qwen-abc-1 needs 1 {SLICE}, none of 2 nodes offers {SLICE}; they have nvidia.com/gpu (1), "
        "nvidia.com/mig-3g.40gb (1); are GPUs divided so, and does the device plugin name slices (strategy mixed)?"
    )
    assert "they have" not in found(of_slice(), nodes=(a_node(),), gpu=SLICE).sentence


def with_claims(words: str, *, made: tuple[str, ...] = ("gpu",)) -> Pod:
    """A pod that asks for gpu of the template two-gpus and nic of rdma."""
    pod = a_pod(unschedulable=words)
    templates = {"gpu": "two-gpus", "nic": "rdma"}
    pod.raw["spec"]["resourceClaims"] = [
        {"name": name, "resourceClaimTemplateName": template} for name, template in templates.items()
    ]
    pod.raw["status"]["resourceClaimStatuses"] = [
        {"name": name, "resourceClaimName": f"qwen-abc-1-{name}-x7"} for name in made
    ]
    return pod


def test_claims_that_nobody_has_made_are_told_with_their_templates() -> None:
    words = 'pod "default/qwen-abc-1": ResourceClaim not created yet'

    assert found(with_claims(words)) == Finding(
        reason=reasons.RESOURCE_CLAIM_PENDING,
        sentence="pod qwen-abc-1 waits for claims that are not made yet (nic of rdma); "
        "is its ResourceClaimTemplate in namespace default?",
    )
    assert (
        "(gpu of two-gpus, nic of rdma); are their ResourceClaimTemplates" in found(with_claims("", made=())).sentence
    )


@pytest.mark.parametrize(
    ("words", "reason", "said"),
    [
        (
            "0/3 nodes are available: 3 cannot allocate all claims. still not schedulable, preemption: 0/3 nodes",
            reasons.INSUFFICIENT_GPU,
            "no node has devices free for the claims of pod qwen-abc-1 (gpu of two-gpus, nic of rdma): 0/3 nodes",
        ),
        (
            "0/3 nodes are available: request two: device class gpu.example.com does not exist.",
            reasons.RESOURCE_CLAIM_PENDING,
            "waits for its claims (gpu of two-gpus, nic of rdma): 0/3 nodes are available: request two: device class",
        ),
        ("0/1 nodes are available: resourceclaim in use.", reasons.RESOURCE_CLAIM_PENDING, "resourceclaim in use"),
        (
            "resource claim default/x is in the process of being allocated",
            reasons.RESOURCE_CLAIM_PENDING,
            "in the process of being allocated",
        ),
    ],
)
def test_what_the_scheduler_says_of_claims_becomes_a_reason(words: str, reason: str, said: str) -> None:
    finding = found(with_claims(words, made=("gpu", "nic")))

    assert finding.reason == reason
    assert said in finding.sentence
