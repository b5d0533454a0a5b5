"""`resources.gpu`: which devices a replica gets."""

from __future__ import annotations

from octavo_operator.api.reader import ObjectReader
from octavo_operator.api.types import Gpu

MAX_GPUS = 16
"""Of one node, which the ranks of a model share."""
RESOURCE_NAME = r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
PRODUCT = r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"


def parse_gpu(raw: ObjectReader) -> Gpu:
    result = Gpu(
        count=raw.integer("count", low=0, high=MAX_GPUS, default=1),
        resource_name=raw.string(
            "resourceName", default="nvidia.com/gpu", pattern=RESOURCE_NAME, remedy="must be like nvidia.com/gpu"
        ),
        product=raw.string(
            "product", pattern=PRODUCT, remedy="is no value of a node's label, such as NVIDIA-H100-80GB-HBM3"
        ),
    )
    if result.count > 1 and "/mig-" in result.resource_name:
        raw.complain(
            "count",
            f"is {result.count} slices of GPUs ({result.resource_name}), between which NCCL cannot speak; "
            "use 1, or whole GPUs",
        )
    _check_product(raw, result)
    raw.finish()
    return result


def _check_product(raw: ObjectReader, gpu: Gpu) -> None:
    if not gpu.product:
        return
    if gpu.count == 0:
        raw.complain("product", f"is {gpu.product}, but count is 0: a replica on the CPU; remove one of them")
    if not gpu.product_label:
        raw.complain(
            "product",
            f"is {gpu.product}, but no label of nodes is known for {gpu.resource_name}, only for nvidia.com/… and "
            "amd.com/…; use placement.nodeSelector",
        )
