"""The types that weights and activations are computed in and that a cache keeps. Pure, so that a plan knows them without torch."""

from __future__ import annotations

from octavo_server.errors import StartupError

DTYPES = ("float32", "float16", "bfloat16")
FP8 = "float8_e4m3fn"
"""torch's name of it."""


def resolve_dtype_name(dtype: str, stored: str, *, is_cpu: bool) -> str:
    """`dtype`, or for "auto" the checkpoint's own on a GPU, and float32 on a CPU.

    Without bfloat16 units in the processor a bfloat16 matrix product is up to 2.4 times slower there than float32, and
    float16 is slower still.

    Raises:
        StartupError: SpecInvalid, for a name that is none of these.
    """
    if dtype == "auto":
        if is_cpu:
            return "float32"
        # float32 checkpoints are for training; a GPU serves them in half the memory.
        return "bfloat16" if stored == "float32" else stored
    if dtype not in DTYPES:
        raise StartupError("SpecInvalid", f"dtype {dtype!r} is not supported; use auto, {', '.join(DTYPES)}")
    return dtype


def kv_dtype_name(kv_cache_dtype: str, dtype: str, *, backend: str) -> str:
    """What `backend`'s cache keeps: `dtype` for "auto", which the compiled CPU kernels keep as float16, or for "fp8" e4m3.

    Raises:
        StartupError: SpecInvalid, for "fp8" where no GPU's kernels run.
    """
    if kv_cache_dtype == "fp8":
        if backend != "triton":
            raise StartupError(
                "SpecInvalid", "--kv-cache-dtype fp8 is kept by the kernels of GPUs alone; on a CPU leave it out"
            )
        return FP8
    return "float16" if backend == "numba" else dtype
