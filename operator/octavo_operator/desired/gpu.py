"""What a pod asks of the scheduler so that it gets its GPUs."""

from __future__ import annotations

from typing import Any

from octavo_operator.api.types import Gpu, ModelDeploymentSpec


def node_selector(spec: ModelDeploymentSpec) -> dict[str, str]:
    """The placement's, and the product of the GPUs: a selector is needed beside whatever the affinity says."""
    gpu = spec.resources.gpu
    return {**spec.placement.node_selector, **({gpu.product_label: gpu.product} if gpu.product else {})}


def extended_resources(gpu: Gpu) -> dict[str, str]:
    """Requests and limits of a device plugin's resource; none where claims bring the devices."""
    return {gpu.resource_name: str(gpu.count)} if gpu.count and not gpu.claims else {}


def pod_claims(gpu: Gpu) -> list[dict[str, Any]]:
    """`resourceClaims` of the pod."""
    return [{"name": claim.name, "resourceClaimTemplateName": claim.template} for claim in gpu.claims]


def container_claims(gpu: Gpu) -> list[dict[str, Any]]:
    """`resources.claims` of the container that gets the devices: all of each claim."""
    return [{"name": claim.name} for claim in gpu.claims]
