"""How each replica is started here: its arguments, its environment, its GPU, and what of the manifest has no meaning.

Pure apart from looking at the file system and /dev. The arguments are the ones that a pod would get.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from octavo_cli.errors import CliError
from octavo_operator.api.types import Disruption, ModelDeployment, ModelDeploymentSpec, Placement, Rollout
from octavo_operator.desired.engine_args import parallel_flags, parse_source, render_server_args

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One replica's start; ``gpu`` is None on the CPU, and several names between commas where it has several."""

    name: str
    resource: ModelDeployment
    gpu: str | None = None
    is_waiting_for_gpu: bool = False
    """It asks for a GPU, this machine has some, and none is left."""

    def arguments(self, port: int) -> list[str]:
        """What follows ``octavo serve``."""
        spec = self.resource.spec
        args = render_server_args(spec, self.resource.name, port=port)
        parallel = parallel_flags(spec, spec.resources.gpu.count if self.gpu else 0)
        return [args[0], f"--host={LOOPBACK}", *parallel, *args[1:]]

    @property
    def environment(self) -> dict[str, str]:
        """Shows the server its own GPU, or none, and the name by which the gateway finds it."""
        tag = f"{self.resource.namespace}/{self.resource.name}/{self.name}"
        return {
            "OCTAVO_ROUTING_TAG": tag,
            "CUDA_VISIBLE_DEVICES": self.gpu or "",
            **({} if self.gpu else {"HIP_VISIBLE_DEVICES": ""}),
        }


def parse_mounts(texts: Sequence[str]) -> dict[str, Path]:
    """``/models=DIR`` → what a path inside a server's container is here."""
    mounts = {}
    for text in texts:
        inside, equals, outside = text.partition("=")
        if not equals or not inside.startswith("/") or not outside:
            raise CliError(f"--mount {text}: must be /PATH/IN/CONTAINER=DIR, such as /models=$HOME/models")
        folder = Path(outside).expanduser().resolve()
        if not folder.is_dir():
            raise CliError(f"--mount {text}: {folder} is not a folder")
        mounts[inside.rstrip("/") or "/"] = folder
    return mounts


def on_this_machine(resource: ModelDeployment, mounts: Mapping[str, Path]) -> ModelDeployment:
    """The resource with its model's path turned into one of this machine."""
    source = parse_source(resource.spec.model)
    if source.scheme not in ("file", "pvc"):
        return resource
    path = _mapped(source.location, mounts)
    if path is None and source.scheme == "file":
        path = Path(source.location)
    if path is None or not path.exists():
        folder = source.location.rsplit("/", 1)[0] if source.scheme == "file" else "/mnt/model"
        raise CliError(
            f"{resource.name}: {resource.spec.model} is {path or source.location}, which does not exist on this "
            f"machine; map its folder: --mount {folder or '/'}=DIR"
        )
    return replace(resource, spec=replace(resource.spec, model=f"file://{path}"))


def plan_launches(resources: Sequence[ModelDeployment], gpus: Sequence[str]) -> list[list[Launch]]:
    """For each resource its replicas; GPUs are handed out in order, as many as each asks for, while there are enough."""
    free = list(gpus)
    return [
        [_launch(resource, number, free, has_gpus=bool(gpus)) for number in range(replicas_here(resource))]
        for resource in resources
    ]


def replicas_here(resource: ModelDeployment) -> int:
    return 0 if resource.spec.suspend else resource.wanted_replicas


def notes(resource: ModelDeployment, gpus: Sequence[str]) -> list[str]:
    """What a cluster would do with this manifest and local mode does not."""
    spec = resource.spec
    said = []
    if spec.resources.gpu.count and not gpus:
        said.append(f"this machine has no {spec.resources.gpu.resource_name}; it runs on the CPU")
    if spec.scaling is not None:
        said.append(f"scaling does not apply here; {replicas_here(resource)} replica(s) run")
    if spec.suspend:
        said.append("suspend is true; nothing is started")
    return said + [sentence for is_given, sentence in _of_a_cluster(spec) if is_given]


def _of_a_cluster(spec: ModelDeploymentSpec) -> tuple[tuple[object, str], ...]:
    """(whether it is given, what becomes of it here)."""
    asked = spec.resources
    return (
        (spec.rollout != Rollout(), "rollout does not apply here; start again to change a model"),
        (
            asked.cpu or asked.memory or asked.shared_memory,
            "resources.cpu, memory and sharedMemory do not apply here; nothing is limited",
        ),
        (asked.gpu.product, "resources.gpu.product does not apply here; there is one machine"),
        (asked.gpu.claims, "resources.gpu.claims do not apply here; a replica takes the GPUs of this machine"),
        (spec.placement != Placement(), "placement does not apply here; there is one machine"),
        (spec.pod_template, "podTemplate does not apply here; there is no pod"),
        (spec.disruption != Disruption(), "disruption does not apply here; nobody evicts"),
        (
            spec.source.secret_ref,
            "source.secretRef is not read here; the variables of this shell are used, such as HF_TOKEN",
        ),
        (spec.cache.kind != "None", "cache does not apply here; what is fetched is kept under ~/.cache"),
    )


def find_gpus(env: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES, found without importing torch."""
    given = env.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() and name.strip() != "-1"]
    return [
        str(number) for number in range(sum(bool(re.fullmatch(r"nvidia\d+", each.name)) for each in devices.iterdir()))
    ]


def _launch(resource: ModelDeployment, number: int, free: list[str], *, has_gpus: bool) -> Launch:
    wanted = resource.spec.resources.gpu.count if has_gpus else 0
    taken = free[:wanted] if len(free) >= wanted else []
    del free[: len(taken)]
    gpu = ",".join(taken) or None
    return Launch(
        name=f"{resource.name}-{number}", resource=resource, gpu=gpu, is_waiting_for_gpu=wanted > 0 and gpu is None
    )


def _mapped(location: str, mounts: Mapping[str, Path]) -> Path | None:
    """The longest mount that the path lies in wins."""
    for inside in sorted(mounts, key=len, reverse=True):
        prefix = inside if inside.endswith("/") else inside + "/"
        if location == inside or location.startswith(prefix):
            return mounts[inside] / location[len(prefix) :]
    return None
