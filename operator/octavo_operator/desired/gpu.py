"""What a pod asks of the scheduler so that it gets its GPUs."""

from __future__ import annotations

from octavo_operator.api.types import ModelDeploymentSpec


def node_selector(spec: ModelDeploymentSpec) -> dict[str, str]:
    """The placement's, and the product of the GPUs: a selector is needed beside whatever the affinity says."""
    gpu = spec.resources.gpu
    return {**spec.placement.node_selector, **({gpu.product_label: gpu.product} if gpu.product else {})}
