"""Every kernel against the reference beside it, on this device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from benchmarks.gpu_report.process import apart
from benchmarks.gpu_report.record import Figure, check
from octavo_kernels import (
    attention_prologue,
    attention_prologue_ref,
    copy_blocks,
    copy_blocks_ref,
    decode_attention,
    decode_attention_ref,
    extend_attention,
    extend_attention_ref,
    fp8_linear,
    fp8_linear_ref,
    fused_moe,
    fused_moe_ref,
    invariant_linear,
    invariant_linear_ref,
    lora,
    lora_ref,
    mla_decode_attention,
    mla_decode_attention_ref,
    moe_routing,
    moe_routing_ref,
    rms_norm,
    rms_norm_ref,
    rotary,
    rotary_ref,
    sample,
    sample_ref,
    silu_and_mul,
    silu_and_mul_ref,
    skinny_linear,
    skinny_linear_ref,
    store_kv,
    store_kv_ref,
    w4a16_linear,
    w4a16_linear_ref,
)
from octavo_kernels.attention_plan import plan_paged_attention
from octavo_kernels.attention_variant import PLAIN, AttentionVariant
from octavo_kernels.expert_matrices import stack_fp8, stack_packed
from octavo_kernels.fp8_weight import FP8, MIN_CAPABILITY, quantize_fp8
from octavo_kernels.handles import KVScales, QKNorm
from octavo_kernels.launch import is_amd
from octavo_kernels.lora_weights import lora_weights
from octavo_kernels.packed_weight import pack
from octavo_kernels.quantized_weight import quantize
from octavo_testing.kernels import Shape, a_paged_case, a_sampling_batch

if TYPE_CHECKING:
    from benchmarks.gpu_report.record import PartRecord

Case = Callable[[torch.dtype, torch.device, bool], tuple[torch.Tensor, torch.Tensor]]
"""(dtype, device, is_tiny) -> what the kernel gave, what the reference gave."""

TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3.2e-2}
"""Largest difference over 1 + |reference|. Sums of some hundred products, in another order and rounded once."""


def run(record: PartRecord, device: torch.device) -> None:
    checks = partial(checks_of, device=device, is_tiny=record.is_tiny)
    for name, found in apart(checks, [*CASES, *SPECIAL_CASES], device):
        record.take(name, found)


def checks_of(name: str, *, device: torch.device, is_tiny: bool) -> list[Figure]:
    """One of CASES in each dtype, or one of SPECIAL_CASES."""
    # The interpreter multiplies bfloat16 wrongly, and takes its time.
    dtypes = [torch.float32] if device.type == "cpu" else list(TOLERANCE)
    found = []
    if name in SPECIAL_CASES:
        torch.manual_seed(0)
        return SPECIAL_CASES[name](device, dtypes[-1], is_tiny)
    for dtype in dtypes:
        torch.manual_seed(0)
        error = largest_error(*CASES[name](dtype, device, is_tiny))
        label = f"{name}, {str(dtype).removeprefix('torch.')}"
        found.append(check(label, error=error, tolerance=TOLERANCE[dtype]))
    return found


def largest_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over 1 + |expected|; infinite where a value of either is no number."""
    wanted = expected.float()
    error = ((actual.float() - wanted).abs() / (1 + wanted.abs())).max()
    return float(error) if bool(error.isfinite()) else float("inf")


def _rms_norm(dtype: torch.dtype, device: torch.device, is_tiny: bool) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(3, 63 if is_tiny else 4096, device=device).to(dtype)
    weight = torch.randn(x.shape[1], device=device).to(dtype)
    return rms_norm.rms_norm(x, weight, 1e-5), rms_norm_ref.rms_norm(x, weight, 1e-5)


def _add_rms_norm(dtype: torch.dtype, device: torch.device, is_tiny: bool) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(3, 63 if is_tiny else 4096, device=device).to(dtype)
    weight, residual = torch.randn(x.shape[1], device=device).to(dtype), torch.randn_like(x)
    mine, theirs = residual.clone(), residual.clone()
    actual = rms_norm.add_rms_norm(x, mine, weight, 1e-5)
    expected = rms_norm_ref.add_rms_norm(x, theirs, weight, 1e-5)
    return torch.cat([actual, mine]), torch.cat([expected, theirs])


def _silu_and_mul(dtype: torch.dtype, device: torch.device, is_tiny: bool) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(3, 2 * (63 if is_tiny else 14336), device=device).to(dtype)
    return silu_and_mul.silu_and_mul(x), silu_and_mul_ref.silu_and_mul(x)


def _rotary(dtype: torch.dtype, device: torch.device, is_tiny: bool) -> tuple[torch.Tensor, torch.Tensor]:
    dim = 16 if is_tiny else 128
    heads = torch.randn(5, 6, dim, device=device).to(dtype)
    angles = torch.rand(50, dim // 2, device=device) * 6
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1)
    positions = torch.tensor([0, 7, 3, 49, 20], device=device)
    mine, theirs = heads.clone(), heads.clone()
    rotary.rotary(mine[:, :4], mine[:, 4:], cos_sin, positions)
    rotary_ref.rotary(theirs[:, :4], theirs[:, 4:], cos_sin, positions)
    return mine, theirs


def _store_kv(dtype: torch.dtype, device: torch.device, is_tiny: bool) -> tuple[torch.Tensor, torch.Tensor]:
    new = torch.randn(2, 4, 2, 16 if is_tiny else 128, device=device).to(dtype)
    mine = torch.zeros(2, 3, 2, 16, new.shape[-1], dtype=dtype, device=device)
    theirs = mine.clone()
    slots = torch.tensor([17, -1, 40, 16], device=device)
    store_kv.store_kv(new[0], new[1], mine[0], mine[1], slots)
    store_kv_ref.store_kv(new[0], new[1], theirs[0], theirs[1], slots)
    return mine, theirs


def _attention_prologue(dtype: torch.dtype, device: torch.device, is_tiny: bool) -> tuple[torch.Tensor, torch.Tensor]:
    dim = 16 if is_tiny else 128
    qkv = torch.randn(4, 8, dim, device=device).to(dtype)
    weights = torch.rand(2, dim, device=device).to(dtype)
    norm = QKNorm(q=weights[0], k=weights[1], eps=1e-6)
    angles = torch.rand(50, dim // 2, device=device) * 6
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1)
    positions, slots = torch.tensor([0, 7, 3, 49], device=device), torch.tensor([17, -1, 40, 16], device=device)
    mine = torch.zeros(2, 3, 2, 16, dim, dtype=dtype, device=device)
    theirs = mine.clone()
    q = attention_prologue.attention_prologue(qkv, norm, cos_sin, positions, mine[0], mine[1], slots)
    wanted = attention_prologue_ref.attention_prologue(qkv, norm, cos_sin, positions, theirs[0], theirs[1], slots)
    return torch.cat([q.flatten(), mine.flatten()]), torch.cat([wanted.flatten(), theirs.flatten()])


def _lora(dtype: torch.dtype, device: torch.device, is_tiny: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of two adapters and of none, over two slices."""
    features, slices, rank = (24, (20, 9), 8) if is_tiny else (4096, (4096, 1024), 32)
    a = (torch.randn(2, 2, rank, features, device=device) * features**-0.5).to(dtype)
    b = (torch.randn(2, sum(slices), rank, device=device) * rank**-0.5).to(dtype)
    weights = lora_weights(a, b, torch.tensor([0.5, 2.0], device=device), slices)
    ids = torch.tensor([1, -1, 0, 1, 0], device=device)
    x, mine = torch.randn(5, features, device=device).to(dtype), torch.randn(5, sum(slices), device=device).to(dtype)
    theirs = mine.clone()
    lora.add_lora(mine, x, weights, lora.lora_rows(ids, 2))
    lora_ref.add_lora(theirs, x, weights, ids)
    return mine, theirs


def _mla(dtype: torch.dtype, device: torch.device, is_tiny: bool) -> tuple[torch.Tensor, torch.Tensor]:
    heads, latent, rope = (4, 24, 8) if is_tiny else (128, 512, 64)
    seq_lens = [20, 70] if is_tiny else [33, 4000, 1, 1025]
    shape = Shape(num_heads=heads, num_kv_heads=1, head_dim=latent + rope)
    case = a_paged_case([1] * len(seq_lens), seq_lens, shape=shape, dtype=dtype, device=str(device))
    plan = plan_paged_attention(
        case.batch, num_heads=heads, num_kv_heads=1, head_dim=latent, query_tile=1, target_items=132
    )
    mine = torch.full((len(seq_lens), heads, latent), torch.nan, dtype=dtype, device=device)
    theirs, cache = mine.clone(), case.key_cache[:, 0]
    mla_decode_attention.mla_decode_attention(case.q, cache, plan, case.scale, mine)
    mla_decode_attention_ref.mla_decode_attention(case.q, cache, plan, case.scale, theirs)
    return mine, theirs


def _copy_blocks(dtype: torch.dtype, device: torch.device, is_tiny: bool) -> tuple[torch.Tensor, torch.Tensor]:
    mine = torch.randn(2, 2, 5, 2, 16, 16 if is_tiny else 128, device=device).to(dtype)
    theirs = mine.clone()
    source, destination = torch.tensor([1, 4], device=device), torch.tensor([3, 2], device=device)
    copy_blocks.copy_blocks(mine[0], mine[1], source, destination)
    copy_blocks_ref.copy_blocks(theirs[0], theirs[1], source, destination)
    return mine, theirs


def _attention(
    dtype: torch.dtype, device: torch.device, is_tiny: bool, *, is_varied: bool = False, is_coded: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decodes around extends, with and without a cached beginning."""
    shape = (
        Shape(num_heads=4, num_kv_heads=2, head_dim=16)
        if is_tiny
        else Shape(num_heads=32, num_kv_heads=8, head_dim=128)
    )
    query_lens, seq_lens = ([1, 3], [20, 5]) if is_tiny else ([1, 200, 1, 77, 1], [33, 200, 3000, 500, 1])
    case = a_paged_case(query_lens, seq_lens, shape=shape, dtype=dtype, device=str(device))
    plan = plan_paged_attention(
        case.batch,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        query_tile=extend_attention.extend_tiling(
            shape.num_heads // shape.num_kv_heads, shape.head_dim, torch.uint8 if is_coded else dtype
        ).query_tile,
        target_items=4 if is_tiny else 528,
    )
    numbers = torch.rand(shape.num_heads, device=device)
    variant = AttentionVariant(soft_cap=2.0, alibi_slopes=numbers, sinks=numbers) if is_varied else PLAIN
    mine, theirs = torch.full_like(case.q, torch.nan), torch.full_like(case.q, torch.nan)
    caches, scales = (case.key_cache, case.value_cache), None
    if is_coded:
        caches = (_codes(caches[0]), _codes(caches[1]))
        scales = KVScales(keys=numbers[: shape.num_kv_heads] + 0.5, values=numbers[: shape.num_kv_heads] + 0.5)
    decode_attention.decode_attention(case.q, *caches, plan, case.scale, mine, variant, scales)
    extend_attention.extend_attention(case.q, *caches, plan, case.scale, mine, variant, scales)
    decode_attention_ref.decode_attention(case.q, *caches, plan, case.scale, theirs, variant, scales)
    extend_attention_ref.extend_attention(case.q, *caches, plan, case.scale, theirs, variant, scales)
    return mine, theirs


def _codes(cache: torch.Tensor) -> torch.Tensor:
    return cache.float().to(torch.float8_e4m3fn).view(torch.uint8)


def _experts(dtype: torch.dtype, device: torch.device, is_tiny: bool) -> tuple[torch.Tensor, torch.Tensor]:
    num_experts, hidden, inner, tokens = (2, 16, 8, 3) if is_tiny else (128, 2048, 768, 65)
    x = torch.randn(tokens, hidden, device=device).to(dtype)
    gate_up = (torch.randn(num_experts, 2 * inner, hidden, device=device) * hidden**-0.5).to(dtype)
    down = (torch.randn(num_experts, hidden, inner, device=device) * inner**-0.5).to(dtype)
    logits = torch.randn(tokens, num_experts, device=device)
    ids, shares = moe_routing.route(logits, 2, renormalizes=True)
    wanted_ids, wanted_shares = moe_routing_ref.route(logits, 2, renormalizes=True)
    actual = fused_moe.fused_moe(x, gate_up, down, ids, shares)
    return actual, fused_moe_ref.fused_moe(x, gate_up, down, wanted_ids, wanted_shares)


def _experts_of_few_bits(dtype: torch.dtype, device: torch.device, is_tiny: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Of 4 bits and of 8; few pairs an expert, and many."""
    actual, expected = [], []
    for bits in (4, 8):
        for tokens in (3,) if is_tiny else (9, 600):
            x, gate_up, down, ids, shares = _expert_case(tokens, device, is_tiny)
            up, low = (stack_packed([pack(quantize(each, bits), device) for each in part]) for part in (gate_up, down))
            actual.append(fused_moe.fused_moe(x.to(dtype), up, low, ids, shares))
            expected.append(fused_moe_ref.fused_moe(x.to(dtype), up, low, ids, shares))
    return torch.cat(actual), torch.cat(expected)


def _experts_of_float8(device: torch.device, _dtype: torch.dtype, is_tiny: bool) -> list[Figure]:
    """Few pairs an expert, and many; nothing where the device has no float8."""
    if not _has_float8(device):
        return []
    error = 0.0
    for tokens in (3,) if is_tiny else (9, 600):
        x, gate_up, down, ids, shares = _expert_case(tokens, device, is_tiny)
        up, low = (stack_fp8([quantize_fp8(each) for each in part]) for part in (gate_up, down))
        # the interpreter multiplies bfloat16 wrongly
        rows = x if device.type == "cpu" else x.bfloat16()
        actual = fused_moe.fused_moe(rows, up, low, ids, shares)
        error = max(error, largest_error(actual, fused_moe_ref.fused_moe(rows, up, low, ids, shares)))
    return [check("experts of float8", error=error, tolerance=TOLERANCE[torch.bfloat16])]


def _expert_case(num_tokens: int, device: torch.device, is_tiny: bool) -> tuple[torch.Tensor, ...]:
    """x, gate_up, down, ids, shares, float32."""
    num_experts, hidden, inner = (2, 32, 32) if is_tiny else (16, 2048, 768)
    ids, shares = moe_routing_ref.route(torch.randn(num_tokens, num_experts, device=device), 2, renormalizes=True)
    gate_up = torch.randn(num_experts, 2 * inner, hidden, device=device) * hidden**-0.5
    down = torch.randn(num_experts, hidden, inner, device=device) * inner**-0.5
    return torch.randn(num_tokens, hidden, device=device), gate_up, down, ids, shares


def _skinny_linear(dtype: torch.dtype, device: torch.device, is_tiny: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A sum in one piece, and one in several."""
    actual, expected = [], []
    for outputs, inputs in ((24, 40), (16, 300)) if is_tiny else ((28672, 4096), (4096, 14336)):
        x = torch.randn(5, inputs, device=device).to(dtype)
        weight = (torch.randn(outputs, inputs, device=device) * inputs**-0.5).to(dtype)
        bias = torch.randn(outputs, device=device).to(dtype)
        tiling = skinny_linear.default_tiling(outputs, inputs, dtype, 132)
        actual.append(skinny_linear.skinny_linear(x, weight, bias, tiling))
        expected.append(skinny_linear_ref.skinny_linear(x, weight, bias))
    return torch.cat(actual, dim=1), torch.cat(expected, dim=1)


def _few_bits(dtype: torch.dtype, device: torch.device, is_tiny: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Of 4 bits and of 8, few rows and many."""
    outputs, inputs = (24, 96) if is_tiny else (4096, 14336)
    actual, expected = [], []
    for bits in (4, 8):
        weight = pack(quantize(torch.randn(outputs, inputs, device=device) * inputs**-0.5, bits), device)
        tiling = w4a16_linear.w4a16_tiling(outputs, inputs, bits, dtype, 132)
        for rows in (3, w4a16_linear.MAX_ROWS + 1):
            x = torch.randn(rows, inputs, device=device).to(dtype)
            actual.append(w4a16_linear.w4a16_linear(x, weight, None, tiling))
            expected.append(w4a16_linear_ref.w4a16_linear(x, weight, None))
    return torch.cat(actual), torch.cat(expected)


def _float8(device: torch.device, _dtype: torch.dtype, is_tiny: bool) -> list[Figure]:
    """Few rows by our kernel, and many by the vendor's product; nothing where the device has no float8."""
    if not _has_float8(device):
        return []
    outputs, inputs = (32, 96) if is_tiny else (4096, 14336)
    weight = quantize_fp8(torch.randn(outputs, inputs, device=device) * inputs**-0.5)
    error = 0.0
    for rows, tiling in ((3, skinny_linear.default_tiling(outputs, inputs, FP8, 132)), (33, None)):
        x = torch.randn(rows, inputs, device=device).bfloat16()
        actual = fp8_linear.fp8_linear(x, weight, None, tiling)
        error = max(error, largest_error(actual, fp8_linear_ref.fp8_linear(x, weight, None)))
    return [check("linear of float8", error=error, tolerance=TOLERANCE[torch.bfloat16])]


def _has_float8(device: torch.device) -> bool:
    """Or interprets it."""
    return device.type == "cpu" or (not is_amd() and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY)


def _invariant_linear(dtype: torch.dtype, device: torch.device, is_tiny: bool) -> tuple[torch.Tensor, torch.Tensor]:
    rows, outputs, inputs = (3, 70, 40) if is_tiny else (130, 4096, 14336)
    x = torch.randn(rows, inputs, device=device).to(dtype)
    weight = (torch.randn(outputs, inputs, device=device) * inputs**-0.5).to(dtype)
    bias = torch.randn(outputs, device=device).to(dtype)
    actual = invariant_linear.invariant_linear(x, weight, bias)
    return actual, invariant_linear_ref.invariant_linear(x, weight, bias)


def _rows_that_change(device: torch.device, dtype: torch.dtype, is_tiny: bool) -> list[Figure]:
    """Of some rows, those that have other bits alone than among all."""
    rows, outputs, inputs = (5, 70, 40) if is_tiny else (130, 4096, 4096)
    x, weight = (torch.randn(count, inputs, device=device).to(dtype) for count in (rows, outputs))
    together = invariant_linear.invariant_linear(x, weight, None)
    picked = (0, rows // 2, rows - 1)
    alone = [invariant_linear.invariant_linear(x[row : row + 1], weight, None) for row in picked]
    wrong = float(sum(not torch.equal(out[0], together[row]) for out, row in zip(alone, picked, strict=True)))
    return [check("batch-invariant linear: rows that others change", error=wrong, tolerance=0, unit="rows")]


def _wrong_draws(device: torch.device, _dtype: torch.dtype, is_tiny: bool) -> list[Figure]:
    vocab, rows = (100, 2) if is_tiny else (128256, 32)
    logits = 3 * torch.randn(rows, vocab, device=device)
    params = a_sampling_batch(rows, temperature=0.8, top_k=50, top_p=0.9, min_p=0.01, seed=3, device=str(device))
    wrong = float((sample.sample(logits, params) != sample_ref.sample(logits, params)).sum())
    return [check("sample: draws that differ", error=wrong, tolerance=0, unit="rows")]


CASES: dict[str, Case] = {
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "silu_and_mul": _silu_and_mul,
    "rotary": _rotary,
    "store_kv": _store_kv,
    "attention_prologue": _attention_prologue,
    "copy_blocks": _copy_blocks,
    "attention": _attention,
    "attention with a soft cap, ALiBi and sinks": partial(_attention, is_varied=True),
    "attention over 8 bits": partial(_attention, is_coded=True),
    "experts": _experts,
    "experts of few bits": _experts_of_few_bits,
    "linear of few rows": _skinny_linear,
    "linear of few bits": _few_bits,
    "lora": _lora,
    "mla_decode_attention": _mla,
    "batch-invariant linear": _invariant_linear,
}

SPECIAL_CASES: dict[str, Callable[[torch.device, torch.dtype, bool], list[Figure]]] = {
    "linear of float8": _float8,
    "experts of float8": _experts_of_float8,
    "rows that others change": _rows_that_change,
    "draws": _wrong_draws,
}
"""Of one dtype, or of what is no number: (device, dtype, is_tiny)."""
