"""The type that weights and activations are computed in. Pure, so that a plan knows it without torch."""

from __future__ import annotations

from octavo_server.errors import StartupError

DTYPES = ("float32", "float16", "bfloat16")


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
