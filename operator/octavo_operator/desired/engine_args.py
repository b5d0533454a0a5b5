"""The arguments of `octavo serve` for a ModelDeployment, the same in a pod and in local mode.

Only what the resource sets becomes a flag; all else is the server's own default.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo_operator.api.types import ModelDeploymentSpec

SERVER_PORT = 8000
PVC_MOUNT_PATH = "/mnt/model"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model URI taken apart."""

    scheme: str
    location: str
    """What `octavo serve` takes. hf: ORG/NAME[/FILE.gguf]; file: absolute path; pvc: absolute path inside the container;
    others: the whole URI."""
    revision: str = ""
    claim: str = ""


def parse_source(model: str) -> ModelSource:
    """Takes a URI apart that `validation` has accepted."""
    scheme, _, rest = model.partition("://")
    if scheme == "hf":
        location, _, revision = rest.partition("@")
        return ModelSource(scheme=scheme, location=location, revision=revision)
    if scheme == "pvc":
        claim, _, path = rest.partition("/")
        return ModelSource(scheme=scheme, location=f"{PVC_MOUNT_PATH}/{path}".rstrip("/"), claim=claim)
    return ModelSource(scheme=scheme, location=rest if scheme == "file" else model)


def render_server_args(spec: ModelDeploymentSpec, name: str, *, port: int = SERVER_PORT) -> list[str]:
    """Arguments after `octavo serve`: MODEL, then flags, then the user's own."""
    source, engine = parse_source(spec.model), spec.engine
    args = [source.location, f"--port={port}", "--served-model-name", *(spec.served_names or (name,))]
    if source.revision:
        args.append(f"--revision={source.revision}")
    args += [f"--weight-files={pattern}" for pattern in spec.source.allow]
    if spec.source.checksum:
        args.append(f"--model-checksum={spec.source.checksum}")
    args += _engine_flags(spec)
    args.append(f"--shutdown-timeout={spec.drain_timeout_s}")
    return [*args, *engine.extra_args]


def num_ranks(spec: ModelDeploymentSpec, num_gpus: int) -> int:
    """Parts that a replica's model is dealt out in: one a GPU that it has, and on a CPU what the engine is asked for.

    Without GPUs where some were asked for (local mode), one.
    """
    if spec.resources.gpu.count:
        return max(1, num_gpus)
    return max(1, spec.engine.tensor_parallel_size)


def parallel_flags(spec: ModelDeploymentSpec, num_gpus: int) -> list[str]:
    """How many ranks, where there are several."""
    ranks = num_ranks(spec, num_gpus)
    return [f"--tensor-parallel-size={ranks}"] if ranks > 1 else []


def _engine_flags(spec: ModelDeploymentSpec) -> list[str]:
    engine, flags = spec.engine, []
    if engine.max_model_len:
        flags.append(f"--max-model-len={engine.max_model_len}")
    if engine.max_num_seqs:
        flags.append(f"--max-num-seqs={engine.max_num_seqs}")
    if engine.gpu_memory_utilization:
        flags.append(f"--gpu-memory-utilization={engine.gpu_memory_utilization}")
    if engine.dtype != "auto":
        flags.append(f"--dtype={engine.dtype}")
    if engine.quantization:
        flags.append(f"--quantization={engine.quantization}")
    if engine.kv_cache_dtype != "auto":
        flags.append(f"--kv-cache-dtype={engine.kv_cache_dtype}")
    if not engine.prefix_caching:
        flags.append("--no-enable-prefix-caching")
    return flags
