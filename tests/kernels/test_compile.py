"""Every Triton kernel compiles for GPUs that are not here, stays in registers and uses the tensor cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from octavo_testing.kernel_cases import CASES, MORE_CASES

pytestmark = pytest.mark.timeout(900)
"""Nothing is compiled twice, but the first time takes minutes of one core."""

SHARED_BYTES_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
"""Of one block on the chip."""

KERNELS = {
    "rms_norm_kernel",
    "rotary_kernel",
    "silu_and_mul_kernel",
    "store_kv_kernel",
    "attention_prologue_kernel",
    "copy_blocks_kernel",
    "keep_threshold_kernel",
    "gumbel_argmax_kernel",
    "decode_attention_kernel",
    "combine_splits_kernel",
    "extend_attention_kernel",
    "lora_shrink_kernel",
    "lora_expand_kernel",
    "mla_decode_attention_kernel",
    "moe_routing_kernel",
    "moe_align_kernel",
    "moe_gate_up_kernel",
    "moe_down_kernel",
    "packed_gate_up_kernel",
    "packed_down_kernel",
    "moe_sum_kernel",
    "skinny_linear_kernel",
    "sum_splits_kernel",
    "w4a16_linear_kernel",
    "dequantize_kernel",
    "invariant_linear_kernel",
}

DOTS = {
    "decode_attention_kernel",
    "extend_attention_kernel",
    "moe_gate_up_kernel",
    "moe_down_kernel",
    "packed_gate_up_kernel",
    "packed_down_kernel",
    "skinny_linear_kernel",
    "w4a16_linear_kernel",
    "mla_decode_attention_kernel",
    "lora_shrink_kernel",
    "lora_expand_kernel",
    "invariant_linear_kernel",
}

LAUNCHED_IN_TURN = {
    "rotary_kernel",
    "store_kv_kernel",
    "copy_blocks_kernel",
    "lora_shrink_kernel",
    "lora_expand_kernel",
    "mla_decode_attention_kernel",
    "dequantize_kernel",
    "invariant_linear_kernel",
}
"""After all that was launched before has ended: no decode of a served model has them, or not often."""

WITHOUT_DOT = {
    ("attention-mha-96-bf16", "decode_attention_kernel"),
    ("attention-mha-96-bf16-window", "decode_attention_kernel"),
    ("attention-group-1-f32", "decode_attention_kernel"),
    ("attention-bloom-bf16", "decode_attention_kernel"),
    ("fp8-attention-mha-96-f16", "decode_attention_kernel"),
}
"""One query head a key/value head: a row of a tensor core's 16 would be used."""


def compiled(cases: Iterable[str], cache: Path) -> list[dict[str, str | int]]:
    """The compiler runs in a process of its own, for this one interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TRITON_CACHE_DIR": str(cache),
        # what Triton did until 3.9 without being told, and warns about since
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    command = [sys.executable, "-m", "octavo_testing.kernel_compiler", ",".join(cases), ",".join(SHARED_BYTES_LIMIT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def results(pytestconfig: pytest.Config) -> list[dict[str, str | int]]:
    return compiled(CASES, pytestconfig.cache.mkdir("triton"))


def assert_fits(results: list[dict[str, str | int]]) -> None:
    assert [r for r in results if r["spilled_bytes"] != 0] == []
    assert [r for r in results if int(r["shared_bytes"]) > SHARED_BYTES_LIMIT[str(r["target"])]] == []
    with_dot = [r for r in results if r["kernel"] in DOTS and (r["case"], r["kernel"]) not in WITHOUT_DOT]
    assert [r for r in with_dot if r["tensor_core_instructions"] == 0] == []


def test_every_kernel_is_compiled_for_every_chip(results: list[dict[str, str | int]]) -> None:
    expected = {(kernel, target) for kernel in KERNELS for target in SHARED_BYTES_LIMIT}
    # the other two chips have no float8 of this format, and are refused
    expected.add(("quantize_rows_kernel", "sm_90"))

    assert {(r["kernel"], r["target"]) for r in results} == expected


def test_nothing_spills_and_shared_memory_and_tensor_cores_are_as_the_chip_has_them(
    results: list[dict[str, str | int]],
) -> None:
    assert_fits(results)


def test_what_may_be_launched_early_waits_for_what_was_launched_before(results: list[dict[str, str | int]]) -> None:
    """Once, and on chips that have it alone."""
    waits = {(r["kernel"], r["target"], r["num_waits"]) for r in results}

    expected = {
        (kernel, "sm_90", 0 if kernel in LAUNCHED_IN_TURN else 1) for kernel in KERNELS | {"quantize_rows_kernel"}
    }
    assert {entry for entry in waits if entry[1] == "sm_90"} == expected
    assert {entry for entry in waits if entry[1] != "sm_90" and entry[2]} == set()


@pytest.mark.full
@pytest.mark.timeout(1600)
def test_more_shapes(pytestconfig: pytest.Config) -> None:
    assert_fits(compiled(MORE_CASES, pytestconfig.cache.mkdir("triton")))
