"""Where a pod finds its model: fetched by the server itself, on a claim that a Job or the server fills, or in an image.

| `cache.type` | volume | who fetches | the server gets |
|---|---|---|---|
| None | emptyDir | the server, at each start of a pod | the URI |
| PVC | claim NAME-HASH, read-only | the Job, once a model; no pod is made before it is done | the folder |
| NodeLocal | claim NAME-HASH of a class of local volumes | the first server, once a node | the URI and the folder |
| Image | image volume, kept by the node's container runtime | the kubelet | the folder |

A claim holds one model: another model is another claim, and the old one goes with the last pod that uses it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from octavo_operator.api.types import JsonObject, ModelDeployment, ModelDeploymentSpec, Source
from octavo_operator.desired import names
from octavo_operator.desired.engine_args import PVC_MOUNT_PATH, parse_source
from octavo_operator.desired.metadata import object_metadata

CACHE_FOLDER = f"{PVC_MOUNT_PATH}/model"
"""The root of a volume may hold lost+found."""
VOLUME = "model"


def claim_name(resource: ModelDeployment) -> str:
    """Of the claim that holds this very model; the size may grow, so that it does not count."""
    spec = resource.spec
    identity = [spec.model, spec.source.checksum, spec.source.allow, spec.cache.kind, spec.cache.storage_class_name]
    return f"{resource.name}-{names.fingerprint([*identity, spec.cache.access_mode])}"


def spec_as_mounted(spec: ModelDeploymentSpec) -> ModelDeploymentSpec:
    """The spec as a server sees it that has the model's files in a folder already."""
    if spec.cache.kind == "Image":
        return replace(spec, model=f"file://{PVC_MOUNT_PATH}", source=Source())
    if spec.cache.kind != "PVC":
        return spec
    source = parse_source(spec.model)
    # Of hf://ORG/NAME/FOLDER/FILE.gguf the file keeps its place.
    file = "/".join(source.location.split("/")[2:]) if source.scheme == "hf" else ""
    return replace(spec, model=f"file://{CACHE_FOLDER}{'/' if file else ''}{file}", source=Source())


def model_volumes(resource: ModelDeployment) -> list[dict[str, Any]]:
    """The volume with the model; none where the server fetches it into its own."""
    spec = resource.spec
    if spec.cache.kind == "Image":
        reference = spec.model.removeprefix("oci://")
        return [{"name": VOLUME, "image": {"reference": reference, "pullPolicy": "IfNotPresent"}}]
    claim = claim_name(resource) if spec.cache.kind in ("PVC", "NodeLocal") else parse_source(spec.model).claim
    return [{"name": VOLUME, "persistentVolumeClaim": {"claimName": claim}}] if claim else []


def model_mounts(resource: ModelDeployment) -> list[dict[str, Any]]:
    """Read-only, but where the server fetches into it."""
    is_filled_here = resource.spec.cache.kind == "NodeLocal"
    writable = {} if is_filled_here else {"readOnly": True}
    return [{"name": VOLUME, "mountPath": PVC_MOUNT_PATH, **writable} for _ in model_volumes(resource)]


def render_claim(resource: ModelDeployment) -> dict[str, Any] | None:
    """The PersistentVolumeClaim NAME-HASH; None where none is wanted."""
    cache = resource.spec.cache
    if cache.kind not in ("PVC", "NodeLocal"):
        return None
    mode = "ReadWriteOnce" if cache.kind == "NodeLocal" else cache.access_mode or "ReadWriteMany"
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": object_metadata(resource, claim_name(resource)),
        "spec": {
            "accessModes": [mode],
            "resources": {"requests": {"storage": cache.size}},
            **({"storageClassName": cache.storage_class_name} if cache.storage_class_name else {}),
        },
    }


def claims_in(workload: JsonObject) -> frozenset[str]:
    """Names of the claims that a Deployment's or Job's pods mount."""
    volumes = workload.get("spec", {}).get("template", {}).get("spec", {}).get("volumes") or ()
    names_ = (volume.get("persistentVolumeClaim", {}).get("claimName") for volume in volumes)
    return frozenset(name for name in names_ if name)
