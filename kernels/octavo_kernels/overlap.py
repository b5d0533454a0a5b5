"""Launches that do not wait for one another: a kernel's programs are placed while the last ones of the kernel before it run.

Between two launches in a row a GPU does nothing for a microsecond or more, which is most of a small model's step. On
NVIDIA chips from compute capability 9.0 on a kernel may be launched early, and waits inside for all memory of the kernels
before it (CUDA's programmatic dependent launch). So a kernel that is launched with `overlapped()` calls `await_inputs`
first, before it reads or writes anything; launched after it may be any kernel, before it too.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl

from octavo_kernels.launch import can_overlap

HAS_WAIT = hasattr(getattr(tl.extra, "cuda", None), "gdc_wait")
"""Triton has it from 3.4 on, and reads a kernel's names where they are not used too."""

if HAS_WAIT:

    @triton.jit
    def await_inputs(IS_OVERLAPPED: tl.constexpr):
        """Until all that was launched before has written what it writes; the kernel launched next may then be placed."""
        if IS_OVERLAPPED:
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()

else:

    @triton.jit
    def await_inputs(IS_OVERLAPPED: tl.constexpr):
        """Nothing: every kernel is launched once those before it have ended."""


def overlapped() -> dict[str, bool]:
    """What a launch is given beside its arguments."""
    if HAS_WAIT and can_overlap():
        return {"IS_OVERLAPPED": True, "launch_pdl": True}
    return {"IS_OVERLAPPED": False}
