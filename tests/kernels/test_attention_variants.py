"""Soft caps, ALiBi and sinks: the reference against transformers' own functions, everything else against it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss

from octavo_kernels.attention_variant import PLAIN, AttentionVariant
from octavo_kernels.errors import KernelError
from octavo_kernels.handles import KVCacheSpec
from octavo_kernels.numba_backend import NumbaBackend
from octavo_kernels.torch_backend import TorchBackend
from octavo_kernels.triton_backend import TritonBackend
from octavo_testing.kernels import PagedCase, Shape, a_paged_case, assert_close
from octavo_testing.paged_attention import MIXED, TOLERANCE, by_reference, by_torch, by_triton

SHAPES = [
    Shape(num_heads=6, num_kv_heads=3, head_dim=24, block_size=16),
    Shape(num_heads=4, num_kv_heads=4, head_dim=80, block_size=5),
    Shape(num_heads=8, num_kv_heads=1, head_dim=64, block_size=32),
]


def slopes(num_heads: int) -> torch.Tensor:
    """BLOOM's: at distance 1."""
    return build_alibi_tensor(torch.ones(1, 2), num_heads, torch.float32)[:, 0, 1].contiguous()


def sinks(num_heads: int) -> torch.Tensor:
    return 2 * torch.randn(num_heads, generator=torch.Generator().manual_seed(5))


def a_variant(name: str, num_heads: int) -> AttentionVariant:
    variants = {
        "cap": AttentionVariant(soft_cap=1.5),
        "alibi": AttentionVariant(alibi_slopes=slopes(num_heads)),
        "sinks": AttentionVariant(sinks=sinks(num_heads)),
        "all": AttentionVariant(soft_cap=1.5, alibi_slopes=slopes(num_heads), sinks=sinks(num_heads)),
    }
    return variants[name]


VARIANTS = pytest.mark.parametrize("name", ["cap", "alibi", "sinks", "all"])


def on(device: str, variant: AttentionVariant) -> AttentionVariant:
    moved = {n: getattr(variant, n) for n in ("alibi_slopes", "sinks")}
    return replace(variant, **{n: t if t is None else t.to(device) for n, t in moved.items()})


def by_transformers(case: PagedCase, variant: AttentionVariant, window: int | None) -> torch.Tensor:
    """Eager attention of Gemma 2 or GPT-OSS, a sequence at a time; ALiBi is BLOOM's tensor added to the mask."""
    num_heads = case.q.shape[1]
    module: Any = SimpleNamespace(
        num_key_value_groups=num_heads // case.key_cache.shape[1], sinks=variant.sinks, training=False
    )
    rows = []
    for i, (k, v) in enumerate(case.contexts):
        start, end = case.batch.query_start_loc[i : i + 2].tolist()
        seen = torch.ones(end - start, len(k), dtype=torch.bool).tril(len(k) - (end - start))
        if window is not None:
            seen = seen.triu(len(k) - (end - start) - window + 1)
        mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
        if variant.alibi_slopes is not None:
            mask = mask + build_alibi_tensor(torch.ones(1, len(k)), num_heads, torch.float32)
        q, k, v = (x.transpose(0, 1)[None] for x in (case.q[start:end], k, v))
        if variant.sinks is not None:
            out, _ = modeling_gpt_oss.eager_attention_forward(module, q, k, v, mask, case.scale)
        else:
            cap = variant.soft_cap
            out, _ = modeling_gemma2.eager_attention_forward(module, q, k, v, mask, scaling=case.scale, softcap=cap)
        rows.append(out[0])
    return torch.cat(rows)


@pytest.mark.parametrize("window", [None, 33])
@pytest.mark.parametrize("name", ["cap", "alibi", "sinks"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference_equals_transformers(shape: Shape, name: str, window: int | None) -> None:
    case, variant = a_paged_case(*MIXED, shape=shape), a_variant(name, shape.num_heads)

    actual = by_reference(case, window, variant)

    assert_close(actual, by_transformers(case, variant, window), 5e-6)
    assert (actual - by_reference(case, window)).abs().max() > 0.1


@VARIANTS
@pytest.mark.parametrize(("shape", "window"), list(zip(SHAPES, (None, 15, 33), strict=True)), ids=str)
def test_triton_equals_the_reference(shape: Shape, window: int | None, name: str, device: str) -> None:
    case, variant = a_paged_case(*MIXED, shape=shape, device=device), on(device, a_variant(name, shape.num_heads))

    assert_close(by_triton(case, variant, window=window), by_reference(case, window, variant), 5e-6)


@VARIANTS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_triton_in_half_precision(dtype: torch.dtype, name: str, device: str) -> None:
    """Many rows a tile, and whole tiles too."""
    case = a_paged_case([1, 30], [200, 210], dtype=dtype, device=device)
    variant = on(device, a_variant(name, case.q.shape[1]))

    assert_close(by_triton(case, variant), by_reference(case, None, variant), TOLERANCE[dtype])


@pytest.mark.parametrize("target_items", [1, 7, 64])
def test_splits_of_a_context_have_the_sink_once(target_items: int, device: str) -> None:
    shape = Shape(num_heads=4, num_kv_heads=2, head_dim=32)
    case = a_paged_case([1, 1, 1], [20, 300, 65], shape=shape, device=device)
    variant = on(device, AttentionVariant(sinks=torch.tensor([3.0, 0.0, 9.0, -1.0])))

    assert_close(by_triton(case, variant, target_items=target_items), by_reference(case, None, variant), 5e-6)


@pytest.mark.parametrize("implementation", [by_triton, by_torch], ids=["triton", "torch"])
def test_a_sink_of_minus_infinity_is_none(implementation: Any, device: str) -> None:
    where = device if implementation is by_triton else "cpu"
    case = a_paged_case(*MIXED, device=where)
    nothing = AttentionVariant(sinks=torch.full((6,), -torch.inf, device=where))

    assert_close(implementation(case, variant=nothing, window=5), by_reference(case, 5), 5e-6)


@pytest.mark.parametrize("implementation", [by_triton, by_torch], ids=["triton", "torch"])
def test_a_large_score_is_capped_and_not_lost(implementation: Any, device: str) -> None:
    where = device if implementation is by_triton else "cpu"
    case = a_paged_case(*MIXED, device=where)
    case = replace(case, q=case.q * 1000)
    variant = AttentionVariant(soft_cap=2.0)

    assert_close(implementation(case, variant=variant), by_reference(case, None, variant), 2e-5)


@VARIANTS
@pytest.mark.parametrize("window", [None, 17])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_torch_backend_equals_the_reference(shape: Shape, window: int | None, name: str) -> None:
    case, variant = a_paged_case(*MIXED, shape=shape), a_variant(name, shape.num_heads)

    assert_close(by_torch(case, window, variant), by_reference(case, window, variant), 5e-6)


def test_torch_backend_cuts_a_long_prefill_into_runs_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo_kernels.torch_attention_variant._SCORES", 6 * 81 * 7)
    case, variant = a_paged_case(*MIXED), a_variant("all", 6)

    assert_close(by_torch(case, None, variant), by_reference(case, None, variant), 5e-6)


@pytest.mark.parametrize("implementation", [by_triton, by_torch], ids=["triton", "torch"])
@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (AttentionVariant(soft_cap=0.0), r"soft_cap is 0.0, must be above 0, or None"),
        (AttentionVariant(sinks=torch.ones(5)), r"sinks has shape \[5\], must be \[6\]"),
        (AttentionVariant(alibi_slopes=torch.ones(6).half()), "alibi_slopes is torch.float16, must be torch.float32"),
    ],
)
def test_a_wrong_variant_is_refused(implementation: Any, variant: AttentionVariant, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        implementation(a_paged_case([1], [3]), variant=variant)


@pytest.mark.parametrize("name", ["torch", "triton", "numba"])
@pytest.mark.parametrize("scale", [0.0, -0.2, float("nan")])
def test_a_scale_that_is_not_above_0_is_refused(name: str, scale: float) -> None:
    cpu = torch.device("cpu")
    backend = {"torch": TorchBackend, "triton": TritonBackend}[name](cpu) if name != "numba" else NumbaBackend(1)
    dtype = torch.float16 if name == "numba" else torch.float32
    spec = KVCacheSpec(num_layers=1, num_blocks=4, block_size=16, num_kv_heads=3, head_dim=24, dtype=dtype)
    cache, case = backend.allocate_kv_cache(spec), a_paged_case([1], [3])
    plan = backend.plan_attention(case.batch, cache, 6)

    with pytest.raises(KernelError, match=f"scale is {scale}, must be above 0"):
        backend.attention(case.q, cache, 0, plan, scale)


def test_the_numba_backend_refuses_variants_and_names_the_fallback() -> None:
    backend = NumbaBackend(1)
    spec = KVCacheSpec(num_layers=1, num_blocks=4, block_size=16, num_kv_heads=3, head_dim=24, dtype=torch.float16)
    cache, case = backend.allocate_kv_cache(spec), a_paged_case([1], [3])
    plan = backend.plan_attention(case.batch, cache, 6)

    with pytest.raises(KernelError, match="no attention with a soft cap and sinks; use the torch backend"):
        backend.attention(case.q, cache, 0, plan, 0.2, AttentionVariant(soft_cap=3.0, sinks=torch.zeros(6)))


def test_the_plain_variant_is_none_of_them() -> None:
    assert PLAIN.is_plain
    assert not any(a_variant(name, 6).is_plain for name in ("cap", "alibi", "sinks", "all"))
