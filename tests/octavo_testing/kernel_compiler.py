"""Compiles our Triton kernels for GPUs that are not here, and reads what came out.

Run as a program (`python -m octavo_testing.kernel_compiler CASES`), for Triton decides to interpret when it is
imported, and the tests beside it do interpret. It calls the real wrappers on CPU tensors with the launch replaced by a
compilation, so the signatures, tile sizes and options are those that a GPU would get.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from octavo_testing.kernel_cases import CASES, MORE_CASES, ONLY_ON

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TENSOR_CORES = {
    "sm_80": r"\bmma\.sync",
    "sm_90": r"\b(?:mma\.sync|wgmma\.mma_async)",
    "gfx942": r"\bv_mfma_",
}
_OPTIONS = ("num_warps", "num_stages", "launch_pdl")
_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What one kernel became on one chip."""

    case: str
    kernel: str
    target: str
    spilled_bytes: int
    registers: int
    shared_bytes: int
    tensor_core_instructions: int
    num_waits: int
    """For the kernels before it; where there is one, it may be launched before they have ended."""


def compile_case(case: str, targets: list[str]) -> list[Compiled]:
    """Every kernel that the case launches, for every target that it is for."""
    compiled: list[Compiled] = []
    for target in (name for name in targets if name in ONLY_ON.get(case, targets)):

        def compile_instead(
            kernel: JITFunction[Any], *_: object, grid: object, warmup: bool, target: str = target, **arguments: Any
        ) -> None:
            del grid, warmup
            compiled.append(_compile(case, kernel, arguments, target))

        is_amd = TARGETS[target].backend == "hip"
        capability = (0, 0) if is_amd else divmod(TARGETS[target].arch, 10)
        with (
            patch.object(JITFunction, "run", compile_instead),
            # the wrappers ask what chip torch was built for, and which is there
            patch("torch.version.hip", "6" if is_amd else None),
            patch("octavo_kernels.launch.nvidia_capability", lambda capability=capability: capability),
        ):
            (CASES | MORE_CASES)[case]()
    return compiled


def _compile(case: str, kernel: JITFunction[Any], arguments: dict[str, Any], target: str) -> Compiled:
    options = {name: arguments[name] for name in _OPTIONS if name in arguments}
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for parameter in kernel.params:
        index = (parameter.num,)
        value = arguments[parameter.name]
        is_looked_at = not parameter.do_not_specialize
        # as Triton specialises a launch: constants, 1, None, and what 16 divides
        if parameter.is_constexpr or value is None or (is_looked_at and type(value) is int and value == 1):
            signature[parameter.name] = "constexpr"
            constants[index] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
        elif isinstance(value, int):
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        else:
            signature[parameter.name] = "fp32"
        if isinstance(value, torch.Tensor) or (is_looked_at and isinstance(value, int) and value % 16 == 0):
            attributes[index] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    binary = triton.compile(source, target=TARGETS[target], options=options)
    spilled, registers = _resources(binary)
    assembly = binary.asm["amdgcn" if target.startswith("gfx") else "ptx"]
    return Compiled(
        case=case,
        kernel=kernel.__name__,
        target=target,
        spilled_bytes=spilled,
        registers=registers,
        shared_bytes=binary.metadata.shared,
        tensor_core_instructions=len(re.findall(TENSOR_CORES[target], assembly)),
        num_waits=len(re.findall(r"griddepcontrol\.wait", assembly)),
    )


def _resources(binary: Any) -> tuple[int, int]:
    """Spilled bytes and registers of a thread."""
    if "amdgcn" in binary.asm:
        found = {
            name: int(value)
            for name, value in re.findall(
                r"\.(\w+_spill_count|private_segment_fixed_size|vgpr_count): +(\d+)", binary.asm["amdgcn"]
            )
        }
        spilled = 4 * (found["vgpr_spill_count"] + found["sgpr_spill_count"]) + found["private_segment_fixed_size"]
        return spilled, found["vgpr_count"]
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(binary.asm["cubin"])
        cubin.flush()
        command = [str(tool), "-res-usage", cubin.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return found["STACK"] + found["LOCAL"], found["REG"]


def main() -> None:
    """Prints one JSON list for the cases and targets of the command line: CASE,CASE TARGET,TARGET."""
    cases, targets = (argument.split(",") for argument in sys.argv[1:3])
    results = [asdict(result) for case in cases for result in compile_case(case, targets)]
    sys.stdout.write(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
