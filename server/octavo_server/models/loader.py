"""One call from a location to a decoder that is ready to run."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from octavo_kernels.backend import (
    CompilingBackend,
    Fp8Backend,
    TunableBackend,
    select_backend,
    select_quantized_backend,
)
from octavo_kernels.errors import KernelError
from octavo_kernels.handles import KVCacheSpec
from octavo_server.errors import StartupError
from octavo_server.models.config import ModelConfig, read_model_config
from octavo_server.models.decoder import Decoder
from octavo_server.models.decoder_weights import load_decoder_weights
from octavo_server.models.dummy_weights import DummyWeights
from octavo_server.models.loaded_dtype import kv_dtype_name, resolve_dtype_name
from octavo_server.models.location import resolve_location
from octavo_server.models.shard import ALONE, Shard
from octavo_server.models.weights import open_weights

if TYPE_CHECKING:
    from octavo_kernels.backend import KernelBackend
    from octavo_server.distributed.communicator import Communicator
    from octavo_server.models.location import ModelLocation
    from octavo_server.models.weights import Progress, WeightSource

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

BATCH_INVARIANT = "batch-invariant"
"""In place of a quantization, with which it does not go: whole weights, and a row's bits its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A decoder and what the engine must know of it; of several ranks, one's."""

    config: ModelConfig
    decoder: Decoder
    backend: KernelBackend
    dtype: torch.dtype
    num_weight_bytes: int
    kv_cache_dtype: str = "auto"
    """"auto" or "fp8", see `EngineConfig`."""
    other_overhead_bytes: int = 0
    """The most that the GPU of another rank holds beside its part."""

    def keeping(self, kv_cache_dtype: str) -> LoadedModel:
        """The same with a cache of that type.

        Raises:
            StartupError: SpecInvalid, where its backend has none.
        """
        kv_dtype_name(kv_cache_dtype, _name(self.dtype), backend=self.backend.name)
        return replace(self, kv_cache_dtype=kv_cache_dtype)

    @property
    def kv_dtype(self) -> torch.dtype:
        if self.kv_cache_dtype == "fp8":
            return torch.float8_e4m3fn
        return self.backend.kv_dtype if isinstance(self.backend, CompilingBackend) else self.dtype

    @property
    def kv_bytes_per_token(self) -> int:
        """Of this rank."""
        return (
            self.config.kv_bytes_per_token(self.kv_dtype.itemsize)
            // self.config.num_kv_heads
            * self.decoder.num_kv_heads
        )

    def kv_cache_spec(self, num_blocks: int, block_size: int) -> KVCacheSpec:
        """The cache that this rank needs; `num_blocks` counts the null block."""
        return KVCacheSpec(
            num_layers=self.config.num_layers,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=self.decoder.num_kv_heads,
            head_dim=self.config.head_dim,
            dtype=self.kv_dtype,
        )


def load_model(
    location: str | Path,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    on_progress: Progress | None = None,
    quantization: str = "none",
    load_format: str = "auto",
    communicator: Communicator | None = None,
) -> LoadedModel:
    """Loads the model at `location`, or one rank's part of it.

    Args:
        location: a Hugging Face folder or a .gguf file on this machine.
        dtype: "auto", "float32", "float16" or "bfloat16".
        device: "cpu" or "cuda[:N]".
        on_progress: told (bytes read, bytes in all) after each tensor.
        quantization: "none", "int8", "int4" or "fp8", see `EngineConfig`; or BATCH_INVARIANT, which is none of these.
        load_format: "auto", "safetensors", "gguf" or "dummy", see `EngineConfig`.
        communicator: this rank's, which need not be connected yet; None: there is but one.

    Raises:
        StartupError: ModelNotFound, ModelInvalid, UnsupportedArchitecture or SpecInvalid.
    """
    resolved = resolve_location(location)
    config = read_model_config(resolved)
    _tell_limits(config)
    torch_dtype = _DTYPES[resolve_dtype_name(dtype, config.dtype, is_cpu=device.startswith("cpu"))]
    source = DummyWeights(config, device) if load_format == "dummy" else _open(resolved, config, load_format)
    backend = _select_backend(device, torch_dtype, quantization)
    shard = ALONE if communicator is None else Shard(rank=communicator.rank, size=communicator.size)
    weights = load_decoder_weights(
        config, source, backend, torch_dtype, on_progress or _no_progress, quantization, shard
    )
    if isinstance(backend, TunableBackend):
        backend.tune(weights.linear_layers)
    if not device.startswith("cpu"):
        # what loading needed for a while would count as taken
        torch.cuda.empty_cache()
    return LoadedModel(
        config=config,
        decoder=Decoder(config, weights, backend, communicator),
        backend=backend,
        dtype=torch_dtype,
        num_weight_bytes=weights.num_bytes,
    )


def _tell_limits(config: ModelConfig) -> None:
    if config.rope.kind == "dynamic":
        logger.warning(
            "dynamic rotary scaling is not served: the context is limited to the length that the model was trained on",
            extra={"max_positions": config.max_positions, "factor": config.rope.factor},
        )


def _open(location: ModelLocation, config: ModelConfig, load_format: str) -> WeightSource:
    found = "gguf" if location.is_gguf else "safetensors"
    if load_format not in ("auto", found):
        message = f"--load-format {load_format}: {location.path} holds {found}; leave the flag out"
        raise StartupError("SpecInvalid", message)
    return open_weights(location, config)


def _select_backend(device: str, dtype: torch.dtype, quantization: str) -> KernelBackend:
    if quantization in ("none", BATCH_INVARIANT):
        return select_backend(device, is_batch_invariant=quantization == BATCH_INVARIANT)
    if quantization == "fp8":
        return _select_fp8_backend(device, dtype)
    if device == "cpu" and dtype != torch.float32:
        raise StartupError(
            "SpecInvalid", f"--quantization computes in float32 on a CPU, not in {_name(dtype)}; leave --dtype out"
        )
    try:
        return select_quantized_backend(device, torch.get_num_threads())
    except KernelError as error:
        raise StartupError("SpecInvalid", f"--quantization: {error}; use --quantization none") from error


def _select_fp8_backend(device: str, dtype: torch.dtype) -> KernelBackend:
    backend = select_backend(device)
    if not isinstance(backend, Fp8Backend):
        raise StartupError(
            "SpecInvalid",
            "--quantization fp8 needs a GPU of compute capability 8.9 or newer (L4, L40S, H100); on a CPU use int8 or int4",
        )
    if dtype != torch.bfloat16:
        raise StartupError(
            "SpecInvalid", f"--quantization fp8 computes in bfloat16, not in {_name(dtype)}; use --dtype bfloat16"
        )
    try:
        backend.check_fp8()
    except KernelError as error:
        raise StartupError("SpecInvalid", f"--quantization fp8: {error}") from error
    return backend


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _no_progress(_done: int, _total: int) -> None:
    pass
