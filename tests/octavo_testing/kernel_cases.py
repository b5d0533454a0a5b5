"""Launches that stand for the shapes people run, as thunks over CPU tensors. Used by kernel_compiler.py alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch

from octavo_kernels.attention_plan import plan_paged_attention
from octavo_kernels.attention_prologue import attention_prologue
from octavo_kernels.attention_variant import AttentionVariant
from octavo_kernels.copy_blocks import copy_blocks
from octavo_kernels.decode_attention import decode_attention
from octavo_kernels.expert_matrices import ExpertMatrices, Fp8Matrices, PackedMatrices
from octavo_kernels.extend_attention import extend_attention, extend_tiling
from octavo_kernels.fp8_linear import fp8_linear
from octavo_kernels.fp8_weight import FP8, Fp8Weight
from octavo_kernels.fused_moe import fused_moe
from octavo_kernels.handles import KVScales, QKNorm
from octavo_kernels.invariant_linear import invariant_linear
from octavo_kernels.lora import add_lora, lora_rows
from octavo_kernels.lora_weights import lora_weights
from octavo_kernels.mla_decode_attention import mla_decode_attention
from octavo_kernels.moe_routing import route
from octavo_kernels.packed_weight import PackedWeight
from octavo_kernels.rms_norm import add_rms_norm, rms_norm
from octavo_kernels.rotary import rotary
from octavo_kernels.sample import sample
from octavo_kernels.silu_and_mul import silu_and_mul
from octavo_kernels.skinny_linear import default_tiling, skinny_linear
from octavo_kernels.store_kv import store_kv
from octavo_kernels.w4a16_linear import w4a16_linear, w4a16_tiling
from octavo_testing.kernels import Shape, a_paged_case, a_sampling_batch

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def _norms(hidden: int, dtype: torch.dtype) -> None:
    x = torch.zeros(4, hidden, dtype=dtype)
    weight = torch.zeros(hidden, dtype=dtype)
    rms_norm(x, weight, 1e-5)
    add_rms_norm(x, x.clone(), weight, 1e-5)


def _rotary(num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    q = torch.zeros(4, num_heads, head_dim, dtype=dtype)
    k = torch.zeros(4, num_kv_heads, head_dim, dtype=dtype)
    rotary(q, k, torch.zeros(32, head_dim), torch.arange(4))


def _prologue(shape: Shape, dtype: torch.dtype, *, is_normed: bool = False, is_fp8: bool = False) -> None:
    held = torch.uint8 if is_fp8 else dtype
    cache = torch.zeros(8, shape.num_kv_heads, shape.block_size, shape.head_dim, dtype=held)
    qkv = torch.zeros(4, shape.num_heads + 2 * shape.num_kv_heads, shape.head_dim, dtype=dtype)
    weight = torch.zeros(shape.head_dim, dtype=dtype)
    norm = QKNorm(q=weight, k=weight, eps=1e-6) if is_normed else None
    slots = torch.arange(4)
    scales = _scales(shape, is_fp8=is_fp8)
    attention_prologue(qkv, norm, torch.zeros(32, shape.head_dim), slots, cache, cache.clone(), slots, scales)


def _scales(shape: Shape, *, is_fp8: bool) -> KVScales | None:
    ones = torch.ones(shape.num_kv_heads)
    return KVScales(keys=ones, values=ones) if is_fp8 else None


def _caches(shape: Shape, dtype: torch.dtype, *, is_fp8: bool = False) -> None:
    held = torch.uint8 if is_fp8 else dtype
    keys = torch.zeros(2, 8, shape.num_kv_heads, shape.block_size, shape.head_dim, dtype=held)
    values = torch.zeros_like(keys)
    k = torch.zeros(4, shape.num_kv_heads, shape.head_dim, dtype=dtype)
    store_kv(k, k.clone(), keys[0], values[0], torch.arange(4), _scales(shape, is_fp8=is_fp8))
    copy_blocks(keys, values, torch.tensor([1, 2]), torch.tensor([3, 4]))


def _attention(
    shape: Shape, dtype: torch.dtype, window: int | None = None, has: str = "", *, is_fp8: bool = False
) -> None:
    """has: letters of what the variant has, a soft Cap, ALiBi's slopes, Sinks."""
    ones = torch.ones(shape.num_heads)
    variant = AttentionVariant(
        soft_cap=50.0 if "C" in has else None,
        alibi_slopes=ones if "A" in has else None,
        sinks=ones if "S" in has else None,
    )
    case = a_paged_case([1, 20], [70, 90], shape=shape, dtype=dtype)
    held = torch.uint8 if is_fp8 else dtype
    tiling = extend_tiling(shape.num_heads // shape.num_kv_heads, shape.head_dim, held)
    plan = plan_paged_attention(
        case.batch,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        query_tile=tiling.query_tile,
        target_items=528,
        window=window,
    )
    out = torch.empty_like(case.q)
    caches, scales = (case.key_cache, case.value_cache), _scales(shape, is_fp8=is_fp8)
    if is_fp8:
        caches = (caches[0].to(torch.uint8), caches[1].to(torch.uint8))
    decode_attention(case.q, *caches, plan, case.scale, out, variant, scales)
    extend_attention(case.q, *caches, plan, case.scale, out, variant, scales)


def _sample(vocab: int) -> None:
    sample(torch.zeros(2, vocab), a_sampling_batch(2, top_k=5, top_p=0.9, min_p=0.1))


def _lora(sizes: tuple[int, tuple[int, ...], int], num_tokens: int, dtype: torch.dtype) -> None:
    """sizes: in, outputs of each slice, rank."""
    in_features, slice_sizes, rank = sizes
    weights = lora_weights(
        torch.zeros(2, len(slice_sizes), rank, in_features, dtype=dtype),
        torch.zeros(2, sum(slice_sizes), rank, dtype=dtype),
        torch.ones(2),
        slice_sizes,
    )
    x, out = torch.zeros(num_tokens, in_features, dtype=dtype), torch.zeros(num_tokens, sum(slice_sizes), dtype=dtype)
    add_lora(out, x, weights, lora_rows(torch.zeros(num_tokens, dtype=torch.int64), 2))


def _mla(num_heads: int, dtype: torch.dtype, latent: int = 512, rope: int = 64) -> None:
    batch = a_paged_case([1, 1], [70, 90]).batch
    plan = plan_paged_attention(
        batch, num_heads=num_heads, num_kv_heads=1, head_dim=latent, query_tile=1, target_items=528
    )
    q, cache = torch.zeros(2, num_heads, latent + rope, dtype=dtype), torch.zeros(16, 16, latent + rope, dtype=dtype)
    mla_decode_attention(q, cache, plan, 0.1, torch.zeros(2, num_heads, latent, dtype=dtype))


def _silu(width: int, dtype: torch.dtype) -> None:
    silu_and_mul(torch.zeros(4, 2 * width, dtype=dtype))


def _experts(sizes: tuple[int, int, int, int], num_tokens: int, dtype: torch.dtype) -> None:
    """sizes: experts, those that a token visits, hidden, inner; the weights take no memory, since nothing reads them."""
    num_experts, num_chosen, hidden, inner = sizes
    ids, shares = route(torch.zeros(num_tokens, num_experts), num_chosen, renormalizes=True)
    gate_up = torch.zeros(1, dtype=dtype).expand(num_experts, 2 * inner, hidden)
    down = torch.zeros(1, dtype=dtype).expand(num_experts, hidden, inner)
    fused_moe(torch.zeros(num_tokens, hidden, dtype=dtype), gate_up, down, ids, shares)


def _quantized_experts(
    quantization: str, sizes: tuple[int, int, int, int], num_tokens: int, dtype: torch.dtype
) -> None:
    """As `_experts`, of few bits."""
    num_experts, num_chosen, hidden, inner = sizes
    ids, shares = route(torch.zeros(num_tokens, num_experts), num_chosen, renormalizes=True)
    gate_up, down = (
        _few_bits(quantization, num_experts, rows, columns) for rows, columns in ((2 * inner, hidden), (hidden, inner))
    )
    fused_moe(torch.zeros(num_tokens, hidden, dtype=dtype), gate_up, down, ids, shares)


def _few_bits(quantization: str, num_experts: int, rows: int, columns: int) -> ExpertMatrices:
    if quantization == "fp8":
        codes = torch.zeros(1, dtype=FP8).expand(num_experts, rows, columns)
        return Fp8Matrices(codes=codes, scales=torch.zeros(num_experts, rows))
    bits = int(quantization.removeprefix("int"))
    return PackedMatrices(
        bits=bits,
        group=32,
        codes=torch.zeros(1, dtype=torch.uint8).expand(num_experts, columns // 32, rows, 4 * bits),
        pairs=torch.zeros(1, dtype=torch.int32).expand(num_experts, columns // 32, rows),
        factor=1.0,
    )


def _skinny(num_columns: int, depth: int, dtype: torch.dtype, num_processors: int = 132) -> None:
    """A whole sum a program where there are so many columns, else several splits."""
    weight, bias = torch.empty(num_columns, depth, dtype=dtype), torch.zeros(num_columns, dtype=dtype)
    skinny_linear(
        torch.zeros(3, depth, dtype=dtype), weight, bias, default_tiling(num_columns, depth, dtype, num_processors)
    )


def _w4a16(num_columns: int, depth: int, num_rows: int, dtype: torch.dtype, bits: int = 4, group: int = 32) -> None:
    weight = PackedWeight(
        bits=bits,
        group=group,
        codes=torch.empty(depth // 32, num_columns, 4 * bits, dtype=torch.uint8),
        pairs=torch.empty(depth // group, num_columns, dtype=torch.int32),
        factor=1.0,
    )
    x, bias = torch.zeros(num_rows, depth, dtype=dtype), torch.zeros(num_columns, dtype=dtype)
    with patch("torch.mm"):
        w4a16_linear(x, weight, bias, w4a16_tiling(num_columns, depth, bits, dtype, 132))


def _fp8(num_columns: int, depth: int) -> None:
    weight = Fp8Weight(codes=torch.empty(num_columns, depth, dtype=FP8), scales=torch.zeros(num_columns))
    tiling = default_tiling(num_columns, depth, FP8, 132)
    fp8_linear(torch.zeros(3, depth, dtype=BF16), weight, torch.zeros(num_columns, dtype=BF16), tiling)


def _invariant(num_columns: int, depth: int, dtype: torch.dtype) -> None:
    weight, bias = torch.empty(num_columns, depth, dtype=dtype), torch.zeros(num_columns, dtype=dtype)
    invariant_linear(torch.zeros(3, depth, dtype=dtype), weight, bias)


_QWEN3_30B = (128, 8, 2048, 768)
_MIXTRAL_8X7B = (8, 2, 4096, 14336)

_LLAMA_8B_QKV = (4096, (4096, 1024, 1024), 16)
_LLAMA_8B = Shape(num_heads=32, num_kv_heads=8, head_dim=128)
_SMOLLM2 = Shape(num_heads=9, num_kv_heads=3, head_dim=64)

CASES: dict[str, Callable[[], None]] = {
    "elementwise-8b-bf16": lambda: (_norms(4096, BF16), _rotary(32, 8, 128, BF16), _silu(14336, BF16), None)[-1],
    "caches-8b-bf16": partial(_caches, _LLAMA_8B, BF16),
    "prologue-8b-bf16": partial(_prologue, _LLAMA_8B, BF16),
    "prologue-qwen3-8b-bf16": partial(_prologue, _LLAMA_8B, BF16, is_normed=True),
    "sample-128k": partial(_sample, 128256),
    "attention-8b-bf16": partial(_attention, _LLAMA_8B, BF16),
    "attention-8b-bf16-window": partial(_attention, _LLAMA_8B, BF16, 4096),
    "attention-8b-bf16-variant": partial(_attention, _LLAMA_8B, BF16, None, "CAS"),
    "attention-smollm2-f16": partial(_attention, _SMOLLM2, F16),
    "fp8-cache-8b-bf16": lambda: (
        _caches(_LLAMA_8B, BF16, is_fp8=True),
        _prologue(_LLAMA_8B, BF16, is_normed=True, is_fp8=True),
        _attention(_LLAMA_8B, BF16, is_fp8=True),
        None,
    )[-1],
    "lora-8b-bf16-few": partial(_lora, _LLAMA_8B_QKV, 8, BF16),
    "lora-8b-bf16-many": partial(_lora, _LLAMA_8B_QKV, 4096, BF16),
    "mla-deepseek-v3-bf16": partial(_mla, 128, BF16),
    "experts-qwen3-30b-bf16-few": partial(_experts, _QWEN3_30B, 8, BF16),
    "experts-qwen3-30b-bf16-many": partial(_experts, _QWEN3_30B, 4096, BF16),
    "experts-qwen3-30b-int4-few": partial(_quantized_experts, "int4", _QWEN3_30B, 8, BF16),
    "experts-qwen3-30b-int4-many": partial(_quantized_experts, "int4", _QWEN3_30B, 4096, BF16),
    "experts-qwen3-30b-int8-few": partial(_quantized_experts, "int8", _QWEN3_30B, 8, BF16),
    "experts-qwen3-30b-fp8-few": partial(_quantized_experts, "fp8", _QWEN3_30B, 8, BF16),
    "experts-qwen3-30b-fp8-many": partial(_quantized_experts, "fp8", _QWEN3_30B, 4096, BF16),
    "skinny-8b-gate-up-bf16": partial(_skinny, 28672, 4096, BF16),
    "skinny-8b-down-bf16": partial(_skinny, 4096, 14336, BF16),
    "w4a16-8b-gate-up-bf16-1": partial(_w4a16, 28672, 4096, 1, BF16),
    "w4a16-8b-down-bf16-100": partial(_w4a16, 4096, 14336, 100, BF16),
    "w4a16-8b-down-bf16-1000": partial(_w4a16, 4096, 14336, 1000, BF16),
    "w8a16-8b-down-bf16-1": partial(_w4a16, 4096, 14336, 1, BF16, 8),
    "fp8-8b-gate-up": partial(_fp8, 28672, 4096),
    "fp8-8b-down": partial(_fp8, 4096, 14336),
    "invariant-8b-down-bf16": partial(_invariant, 4096, 14336, BF16),
}
"""The ordinary tests compile these."""

MORE_CASES: dict[str, Callable[[], None]] = {
    "elementwise-70b-bf16": lambda: (_norms(8192, BF16), _rotary(64, 8, 128, BF16), _silu(28672, BF16), None)[-1],
    "elementwise-smollm2-f32": lambda: (_norms(576, F32), _rotary(9, 3, 64, F32), _silu(1536, F32), None)[-1],
    "caches-odd-f32": partial(_caches, Shape(num_heads=6, num_kv_heads=3, head_dim=24, block_size=5), F32),
    "prologue-odd-f32": partial(
        _prologue, Shape(num_heads=6, num_kv_heads=3, head_dim=24, block_size=5), F32, is_normed=True
    ),
    "lora-8b-f16-rank-64": partial(_lora, (14336, (4096,), 64), 8, F16),
    "lora-odd-f32-few": partial(_lora, (72, (100, 33), 12), 8, F32),
    "lora-odd-f32-many": partial(_lora, (72, (100, 33), 12), 200, F32),
    "mla-deepseek-v2-lite-bf16": partial(_mla, 16, BF16),
    "mla-odd-f32": partial(_mla, 6, F32, 40, 8),
    "fp8-attention-256-bf16-window": partial(
        _attention, Shape(num_heads=8, num_kv_heads=4, head_dim=256), BF16, 1024, is_fp8=True
    ),
    "fp8-attention-mha-96-f16": partial(
        _attention, Shape(num_heads=32, num_kv_heads=32, head_dim=96), F16, is_fp8=True
    ),
    "fp8-attention-gpt-oss-bf16-window": partial(
        _attention, Shape(num_heads=64, num_kv_heads=8, head_dim=64), BF16, 128, "S", is_fp8=True
    ),
    "fp8-attention-qwen2-7b-bf16": partial(
        _attention, Shape(num_heads=28, num_kv_heads=4, head_dim=128), BF16, is_fp8=True
    ),
    "sample-49k": partial(_sample, 49152),
    "attention-8b-f16-block-32": partial(
        _attention, Shape(num_heads=32, num_kv_heads=8, head_dim=128, block_size=32), F16
    ),
    "attention-smollm2-f32": partial(_attention, _SMOLLM2, F32),
    "attention-mha-96-bf16": partial(_attention, Shape(num_heads=32, num_kv_heads=32, head_dim=96), BF16),
    "attention-group-1-f32": partial(_attention, Shape(num_heads=4, num_kv_heads=4, head_dim=80), F32),
    "attention-256-bf16": partial(_attention, Shape(num_heads=8, num_kv_heads=4, head_dim=256), BF16),
    "attention-mqa-71-bf16": partial(_attention, Shape(num_heads=71, num_kv_heads=1, head_dim=64), BF16),
    "attention-smollm2-f32-window": partial(_attention, _SMOLLM2, F32, 33),
    "attention-mha-96-bf16-window": partial(_attention, Shape(num_heads=32, num_kv_heads=32, head_dim=96), BF16, 4096),
    "attention-256-bf16-window": partial(_attention, Shape(num_heads=8, num_kv_heads=4, head_dim=256), BF16, 1024),
    "attention-qwen2-7b-bf16-window": partial(
        _attention, Shape(num_heads=28, num_kv_heads=4, head_dim=128), BF16, 32768
    ),
    "attention-qwen2-half-b-f16-window": partial(
        _attention, Shape(num_heads=14, num_kv_heads=2, head_dim=64), F16, 4096
    ),
    "attention-qwen2-7b-bf16": partial(_attention, Shape(num_heads=28, num_kv_heads=4, head_dim=128), BF16),
    "experts-mixtral-8x7b-f16-few": partial(_experts, _MIXTRAL_8X7B, 8, F16),
    "experts-mixtral-8x7b-f16-many": partial(_experts, _MIXTRAL_8X7B, 4096, F16),
    "experts-qwen3-30b-int8-many": partial(_quantized_experts, "int8", _QWEN3_30B, 4096, BF16),
    "experts-mixtral-8x7b-int4-f16-few": partial(_quantized_experts, "int4", _MIXTRAL_8X7B, 8, F16),
    "experts-mixtral-8x7b-int4-f16-many": partial(_quantized_experts, "int4", _MIXTRAL_8X7B, 4096, F16),
    "experts-mixtral-8x7b-fp8-few": partial(_quantized_experts, "fp8", _MIXTRAL_8X7B, 8, BF16),
    "experts-mixtral-8x7b-fp8-many": partial(_quantized_experts, "fp8", _MIXTRAL_8X7B, 4096, BF16),
    "experts-odd-int4-f32-few": partial(_quantized_experts, "int4", (5, 2, 96, 160), 8, F32),
    "experts-odd-int8-f32-many": partial(_quantized_experts, "int8", (5, 2, 96, 160), 200, F32),
    "skinny-smollm2-f16": partial(_skinny, 576, 1536, F16),
    "skinny-smollm2-f32": partial(_skinny, 576, 1536, F32),
    "invariant-odd-f32": partial(_invariant, 517, 200, F32),
    "skinny-odd-bf16": partial(_skinny, 517, 200, BF16),
    "w4a16-smollm2-f16-20": partial(_w4a16, 576, 1536, 20, F16, 4, 128),
    "w4a16-smollm2-f32-1": partial(_w4a16, 576, 1536, 1, F32),
    "w4a16-smollm2-f32-100": partial(_w4a16, 576, 1536, 100, F32),
    "w8a16-8b-down-bf16-100": partial(_w4a16, 4096, 14336, 100, BF16, 8),
    "w8a16-8b-down-f16-1000": partial(_w4a16, 4096, 14336, 1000, F16, 8),
    "experts-odd-f32-few": partial(_experts, (5, 2, 72, 100), 8, F32),
    "experts-odd-f32-many": partial(_experts, (5, 2, 72, 100), 200, F32),
    "attention-gemma2-9b-bf16": partial(_attention, Shape(num_heads=16, num_kv_heads=8, head_dim=256), BF16, None, "C"),
    "attention-gemma2-9b-bf16-window": partial(
        _attention, Shape(num_heads=16, num_kv_heads=8, head_dim=256), BF16, 4096, "C"
    ),
    "attention-gemma2-27b-bf16-window": partial(
        _attention, Shape(num_heads=32, num_kv_heads=16, head_dim=128), BF16, 4096, "C"
    ),
    "attention-gpt-oss-bf16": partial(_attention, Shape(num_heads=64, num_kv_heads=8, head_dim=64), BF16, None, "S"),
    "attention-gpt-oss-bf16-window": partial(
        _attention, Shape(num_heads=64, num_kv_heads=8, head_dim=64), BF16, 128, "S"
    ),
    "attention-bloom-bf16": partial(_attention, Shape(num_heads=112, num_kv_heads=112, head_dim=128), BF16, None, "A"),
    "attention-falcon-bf16": partial(_attention, Shape(num_heads=71, num_kv_heads=1, head_dim=64), BF16, None, "A"),
    "attention-smollm2-f32-variant": partial(_attention, _SMOLLM2, F32, 33, "CAS"),
    "attention-odd-f16": partial(_attention, Shape(num_heads=6, num_kv_heads=3, head_dim=24, block_size=5), F16),
}
"""The long proof compiles these too."""

ONLY_ON: dict[str, tuple[str, ...]] = dict.fromkeys(
    (
        "fp8-8b-gate-up",
        "fp8-8b-down",
        "experts-qwen3-30b-fp8-few",
        "experts-qwen3-30b-fp8-many",
        "experts-mixtral-8x7b-fp8-few",
        "experts-mixtral-8x7b-fp8-many",
    ),
    ("sm_90",),
)
"""Chips that a case is for, where it is not for all: before sm_89 there is no float8, and gfx942 has another."""
