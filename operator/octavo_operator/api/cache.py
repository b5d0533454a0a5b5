"""`spec.cache`: where a fetched model is kept, by the same rules as the CRD's."""

from __future__ import annotations

from octavo_operator.api.quantity import parse_quantity
from octavo_operator.api.reader import ObjectReader
from octavo_operator.api.source import HERE
from octavo_operator.api.types import Cache, Source

TYPES = ("Auto", "PVC", "NodeLocal", "Image", "None")
ACCESS_MODES = ("", "ReadWriteMany", "ReadWriteOnce")


def parse_cache(raw: ObjectReader, model: str, source: Source) -> Cache:
    """What contradicts itself, the model's scheme or its source is refused."""
    size = raw.take("size")
    cache = Cache(
        type=raw.choice("type", TYPES, default="Auto"),
        size="" if size is None else str(size),
        storage_class_name=raw.string("storageClassName"),
        access_mode=raw.choice("accessMode", ACCESS_MODES, default=""),
    )
    number = parse_quantity(cache.size) if cache.size else None
    if cache.size and (number is None or number <= 0):
        raw.complain("size", f"{size!r} is no quantity, such as 40Gi")
    scheme = model.partition("://")[0]
    if cache.kind != "None" and scheme in HERE:
        raw.complain("", f"is for models that are fetched; {scheme}:// is mounted")
    _check_volume(raw, cache)
    if cache.kind == "Image" and (scheme != "oci" or source != Source()):
        raw.complain("type", "Image mounts an oci:// image as it is: model must be oci://, and source must be unset")
    raw.finish()
    return cache


def _check_volume(raw: ObjectReader, cache: Cache) -> None:
    has_claim = cache.kind in ("PVC", "NodeLocal")
    if has_claim and not cache.size:
        raw.complain("size", "is required for a PersistentVolumeClaim, such as 40Gi")
    if cache.kind == "NodeLocal" and not cache.storage_class_name:
        raw.complain("storageClassName", "is required for NodeLocal: a class of local volumes")
    if not has_claim and (cache.size or cache.storage_class_name):
        raw.complain("size", f"and storageClassName are for PVC and NodeLocal, type is {cache.type}")
    if cache.access_mode and cache.kind != "PVC":
        raw.complain("accessMode", f"is for PVC, type is {cache.type}")
