"""`spec.engine`: settings of the engine and further arguments of the server, by the same rules as the CRD's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from octavo_operator.api.reader import ObjectReader
from octavo_operator.api.types import EngineSettings

MAX_RANKS = 16
"""Of one model on one node, as many as GPUs."""
UTILIZATION = r"(0\.[0-9]{0,4}[1-9]|0\.[1-9][0-9]{0,4}|1|1\.0+)?"
DTYPES = ("auto", "bfloat16", "float16", "float32")
QUANTIZATIONS = ("", "int8", "int4", "fp8")
NOT_SERVED_QUANTIZATIONS = ("awq", "gptq", "compressed-tensors")
KV_CACHE_DTYPES = ("auto", "fp8")
NOT_SERVED_KV_CACHE_DTYPES = ("int8",)
RESERVED_FLAGS = (
    "--host",
    "--port",
    "--config",
    "--ssl-keyfile",
    "--ssl-certfile",
    "--api-key",
    "--routing-tag",
)
"""What the operator, the probes and the gateway rely on."""
FIELD_OF_FLAG: Mapping[str, str] = {
    "--revision": "model (hf://ORG/NAME@REVISION)",
    "--weight-files": "source.allow",
    "--model-checksum": "source.checksum",
    "--download-dir": "cache",
    "--served-model-name": "servedNames",
    "--tensor-parallel-size": "resources.gpu.count or engine.tensorParallelSize",
    "--max-model-len": "engine.maxModelLen",
    "--max-num-seqs": "engine.maxNumSeqs",
    "--gpu-memory-utilization": "engine.gpuMemoryUtilization",
    "--dtype": "engine.dtype",
    "--quantization": "engine.quantization",
    "--kv-cache-dtype": "engine.kvCacheDtype",
    "--enable-prefix-caching": "engine.prefixCaching",
    "--no-enable-prefix-caching": "engine.prefixCaching",
    "--shutdown-timeout": "drain.timeout",
}
"""Which field sets what: two of them would contradict each other, and the status would speak of the wrong one.

`--device` is free: a GPU's pod is started with cuda, and who wants it on the CPU all the same may say so.
"""


def parse_engine(raw: ObjectReader, num_gpus: int) -> EngineSettings:
    """`num_gpus` are those of a replica. Arguments that a field or the operator itself sets are refused."""
    result = EngineSettings(
        max_model_len=raw.integer("maxModelLen", low=0, high=16_777_216),
        max_num_seqs=raw.integer("maxNumSeqs", low=0, high=8192),
        gpu_memory_utilization=raw.string(
            "gpuMemoryUtilization", pattern=UTILIZATION, remedy='must be a string in (0, 1], such as "0.9"'
        ),
        dtype=raw.choice("dtype", DTYPES, default="auto"),
        quantization=_served(
            raw, "quantization", QUANTIZATIONS, NOT_SERVED_QUANTIZATIONS, "an unquantised checkpoint or a GGUF file"
        ),
        kv_cache_dtype=_served(
            raw,
            "kvCacheDtype",
            KV_CACHE_DTYPES,
            NOT_SERVED_KV_CACHE_DTYPES,
            "fp8, or auto, the type of the activations",
        ),
        prefix_caching=raw.boolean("prefixCaching", default=True),
        tensor_parallel_size=raw.integer("tensorParallelSize", low=0, high=MAX_RANKS),
        extra_args=raw.strings("extraArgs", most=64),
    )
    raw.not_served("speculative", "leave it out: the model itself computes every token")
    if num_gpus and result.tensor_parallel_size not in (0, num_gpus):
        raw.complain(
            "tensorParallelSize",
            f"is {result.tensor_parallel_size} and resources.gpu.count {num_gpus}: each GPU holds one part; leave it 0",
        )
    for argument in result.extra_args:
        _check_argument(raw, argument)
    raw.finish()
    return result


def _served(raw: ObjectReader, field: str, served: tuple[str, ...], later: tuple[str, ...], instead: str) -> str:
    """One of `served`, the first by default; one of `later` is refused as not served yet."""
    value = raw.choice(field, (*served, *later), default=served[0])
    if value in later:
        *others, last = (name for name in served if name)
        known = f"{', '.join(others)} and {last}" if others else last
        raw.complain(field, f"{value} is not served yet, only {known}; use {instead}")
    return value


def _check_argument(raw: ObjectReader, argument: str) -> None:
    flag = re.split(r"[=\s]", argument, maxsplit=1)[0]
    if flag in RESERVED_FLAGS:
        raw.complain("extraArgs", f"may not set {flag}: the operator, the probes and the gateway rely on it")
    if flag in FIELD_OF_FLAG:
        raw.complain("extraArgs", f"may not set {flag}; use the field {FIELD_OF_FLAG[flag]}")
