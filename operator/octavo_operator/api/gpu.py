"""`resources.gpu`: which devices a replica gets."""

from __future__ import annotations

from collections.abc import Mapping

from octavo_operator.api.reader import ObjectReader
from octavo_operator.api.types import DeviceClaim, Gpu

MAX_GPUS = 16
"""Of one node, which the ranks of a model share."""
RESOURCE_NAME = r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
PRODUCT = r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"

MAX_CLAIMS = 8
CLAIM_NAME = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
TEMPLATE_NAME = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
CLAIMABLE = ("nvidia.com/gpu", "amd.com/gpu")
"""Each stands for a server's image."""


def parse_gpu(raw: ObjectReader) -> Gpu:
    result = Gpu(
        count=raw.integer("count", low=0, high=MAX_GPUS, default=1),
        resource_name=raw.string(
            "resourceName", default="nvidia.com/gpu", pattern=RESOURCE_NAME, remedy="must be like nvidia.com/gpu"
        ),
        product=raw.string(
            "product", pattern=PRODUCT, remedy="is no value of a node's label, such as NVIDIA-H100-80GB-HBM3"
        ),
        claims=_claims(raw),
    )
    if result.count > 1 and "/mig-" in result.resource_name:
        raw.complain(
            "count",
            f"is {result.count} slices of GPUs ({result.resource_name}), between which NCCL cannot speak; "
            "use 1, or whole GPUs",
        )
    _check_product(raw, result)
    _check_claims(raw, result)
    raw.finish()
    return result


def _claims(raw: ObjectReader) -> tuple[DeviceClaim, ...]:
    given = raw.take("claims")
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) > MAX_CLAIMS or not all(isinstance(each, Mapping) for each in given):
        raw.complain("claims", f"must be a list of at most {MAX_CLAIMS} objects, name and resourceClaimTemplateName")
        return ()
    claims = tuple(
        _claim(ObjectReader(each, f"{raw.path}.claims[{number}]", raw.problems)) for number, each in enumerate(given)
    )
    if len({claim.name for claim in claims}) != len(claims):
        raw.complain("claims", "holds a name twice")
    return claims


def _claim(raw: ObjectReader) -> DeviceClaim:
    for field in ("name", "resourceClaimTemplateName"):
        if not raw.has(field):
            raw.complain(field, "is required")
    claim = DeviceClaim(
        name=raw.string("name", pattern=CLAIM_NAME, remedy="must hold lower-case letters, digits and '-'"),
        template=raw.string(
            "resourceClaimTemplateName", pattern=TEMPLATE_NAME, remedy="is no name of a ResourceClaimTemplate"
        ),
    )
    raw.finish()
    return claim


def _check_claims(raw: ObjectReader, gpu: Gpu) -> None:
    if not gpu.claims:
        return
    if gpu.count == 0:
        raw.complain("count", "is 0, but claims ask for devices; set it to the number of GPUs that they hold together")
    if gpu.product:
        raw.complain("product", "is for resourceName; of claims the DeviceClass and its selectors choose the product")
    if gpu.resource_name not in CLAIMABLE:
        raw.complain(
            "resourceName",
            f"is {gpu.resource_name}; beside claims it says whose GPUs they are: {' or '.join(CLAIMABLE)}",
        )


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
