"""KV caches in float8_e4m3fn: codes against torch's own conversion, attention and prologue against their references."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import pad

from octavo_kernels import attention_prologue, attention_prologue_ref, store_kv, store_kv_ref
from octavo_kernels.attention_variant import AttentionVariant
from octavo_kernels.errors import KernelError
from octavo_kernels.handles import KVCacheSpec, KVScales, QKNorm
from octavo_kernels.numba_backend import NumbaBackend
from octavo_kernels.torch_backend import TorchBackend
from octavo_kernels.triton_backend import TritonBackend
from octavo_testing.kernels import PagedCase, Shape, a_paged_case, assert_close
from octavo_testing.paged_attention import MIXED, TOLERANCE, by_reference, by_triton

FP8 = torch.float8_e4m3fn


def some_scales(num_kv_heads: int, device: str, *layers: int) -> KVScales:
    generator = torch.Generator().manual_seed(1)
    keys, values = 0.01 + torch.rand(2, *layers, num_kv_heads, generator=generator)
    return KVScales(keys=keys.to(device), values=values.to(device))


def coded(case: PagedCase, scales: KVScales) -> PagedCase:
    """The same case over codes; what is NaN stays one."""
    key_cache, value_cache = (
        (cache.float() / scale[:, None, None]).to(FP8).view(torch.uint8)
        for cache, scale in ((case.key_cache, scales.keys), (case.value_cache, scales.values))
    )
    return replace(case, key_cache=key_cache, value_cache=value_cache)


def decoded(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return codes.view(FP8).float() * scale[:, None, None]


def numbers_around_codes() -> torch.Tensor:
    """Every finite number of 8 bits, the ties between neighbours, what lies beside those, and what has no code."""
    codes = torch.arange(127, dtype=torch.uint8).view(FP8).float()
    ties = (codes[1:] + codes[:-1]) / 2
    beside = torch.cat((ties.nextafter(torch.tensor(0.0)), ties.nextafter(torch.tensor(500.0))))
    odd = torch.tensor([1e-9, 449.0, 460.0, 500.0, 1e30, torch.inf])
    positive = torch.cat((codes, ties, beside, odd))
    return torch.cat((positive, -positive, torch.tensor([torch.nan])))


def test_numbers_become_the_codes_that_torch_gives_them(device: str) -> None:
    numbers = pad(numbers_around_codes(), (0, 33)).to(device)
    k = numbers.view(-1, 1, 48)
    scales = KVScales(keys=torch.ones(1, device=device), values=torch.full((1,), 2.0, device=device))
    slots = torch.arange(len(k), device=device)
    caches = torch.zeros(2, 2, 1, 16, 48, dtype=torch.uint8, device=device)

    store_kv.store_kv(k, k, caches[0], caches[1], slots, scales)

    for cache, scale in zip(caches, (1, 2), strict=True):
        wanted = (numbers / scale).clamp(-448, 448).nan_to_num(nan=448).to(FP8)
        actual = cache.flatten()[: len(numbers)].view(FP8)
        assert torch.equal(actual.float(), wanted.float())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_storing_equals_the_reference(dtype: torch.dtype, device: str) -> None:
    k, v = torch.randn(2, 5, 3, 24, generator=torch.Generator().manual_seed(0)).to(device, dtype).unbind()
    slots, scales = torch.tensor([3, -1, 17, 0, 40], device=device), some_scales(3, device)
    mine = torch.full((2, 3, 3, 16, 24), 7, dtype=torch.uint8, device=device)
    theirs = mine.clone()

    store_kv.store_kv(k, v, mine[0], mine[1], slots, scales)

    store_kv_ref.store_kv(k, v, theirs[0], theirs[1], slots, scales)
    assert torch.equal(mine.view(FP8).float(), theirs.view(FP8).float())
    assert int((mine != 7).any(dim=-1).sum()) == 2 * 4 * 3


def test_reference_of_attention_reads_the_numbers_that_torch_reads() -> None:
    case, scales = a_paged_case(*MIXED), some_scales(3, "cpu")
    codes = coded(case, scales)
    numbers = replace(
        case,
        key_cache=decoded(codes.key_cache, scales.keys),
        value_cache=decoded(codes.value_cache, scales.values),
    )

    assert_close(by_reference(codes, scales=scales), by_reference(numbers), 1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        (Shape(num_heads=6, num_kv_heads=3, head_dim=24, block_size=16), None),
        (Shape(num_heads=4, num_kv_heads=4, head_dim=80, block_size=5), 33),
    ],
    ids=str,
)
def test_attention_equals_the_reference(shape: Shape, window: int | None, dtype: torch.dtype, device: str) -> None:
    scales = some_scales(shape.num_kv_heads, device)
    case = coded(a_paged_case(*MIXED, shape=shape, dtype=dtype, device=device), scales)

    actual = by_triton(case, scales=scales, window=window)

    assert_close(actual, by_reference(case, window, scales=scales), TOLERANCE[dtype])


def test_attention_with_a_variant_over_codes(device: str) -> None:
    scales = some_scales(3, device)
    case = coded(a_paged_case(*MIXED, device=device), scales)
    ones = torch.ones(6, device=device)
    variant = AttentionVariant(soft_cap=1.5, alibi_slopes=ones * 0.1, sinks=ones)

    assert_close(by_triton(case, variant, scales), by_reference(case, None, variant, scales), 5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prologue_equals_the_reference(dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(4, 12, 24, generator=generator).to(device, dtype)
    weight, cos_sin = torch.rand(24, generator=generator).to(device), torch.rand(50, 24, generator=generator).to(device)
    slots, scales = torch.tensor([3, -1, 17, 0], device=device), some_scales(3, device)
    norm = QKNorm(q=weight, k=weight, eps=1e-5)
    mine = torch.full((2, 3, 3, 16, 24), 7, dtype=torch.uint8, device=device)
    theirs = mine.clone()
    positions = torch.tensor([4, 0, 49, 7], device=device)

    q = attention_prologue.attention_prologue(qkv, norm, cos_sin, positions, mine[0], mine[1], slots, scales)

    wanted = attention_prologue_ref.attention_prologue(
        qkv, norm, cos_sin, positions, theirs[0], theirs[1], slots, scales
    )
    assert_close(q, wanted)
    # where a key lies between two codes, its last bit decides: a step of 1/8 at most
    assert_close(mine.view(FP8).float(), theirs.view(FP8).float(), 0.13)
    assert float((mine == theirs).float().mean()) > 0.98


def a_spec(dtype: torch.dtype) -> KVCacheSpec:
    return KVCacheSpec(num_layers=2, num_blocks=12, block_size=16, num_kv_heads=3, head_dim=24, dtype=dtype)


def through_a_backend(dtype: torch.dtype, scales: KVScales | None, device: str) -> torch.Tensor:
    backend = TritonBackend(torch.device("cuda", 0) if device == "cuda" else torch.device("cpu"))
    cache = backend.allocate_kv_cache(a_spec(dtype), scales)
    case = a_paged_case([5, 1], [5, 1], device=device)
    k, v = torch.randn(2, 6, 3, 24, generator=torch.Generator().manual_seed(2)).to(device).unbind()
    backend.store_kv(k, v, cache, 1, case.batch.slot_mapping)
    return backend.attention(case.q, cache, 1, backend.plan_attention(case.batch, cache, 6), 0.2)


def test_a_cache_of_8_bits_is_near_one_of_32(device: str) -> None:
    """Three bits of mantissa: an error of 1/16 at most in each number."""
    exact = through_a_backend(torch.float32, None, device)

    for scales in (None, some_scales(3, device, 2)):
        near = through_a_backend(FP8, scales, device)
        assert float((near - exact).norm() / exact.norm()) < 0.05
        assert not torch.equal(near, exact)


def test_a_cache_of_8_bits_takes_a_quarter_of_the_memory_of_32() -> None:
    assert a_spec(FP8).num_bytes * 4 == a_spec(torch.float32).num_bytes


@pytest.mark.parametrize("backend", [TorchBackend(torch.device("cpu")), NumbaBackend(1)], ids=["torch", "numba"])
def test_backends_without_such_a_cache_refuse_it(backend: TorchBackend | NumbaBackend) -> None:
    with pytest.raises(KernelError, match=r"float8_e4m3fn"):
        backend.allocate_kv_cache(a_spec(FP8))


def test_scales_that_do_not_fit_are_refused() -> None:
    backend = TritonBackend(torch.device("cpu"))

    with pytest.raises(KernelError, match=r"scales.keys has shape \[3\], must be \[2, 3\]"):
        backend.allocate_kv_cache(a_spec(FP8), some_scales(3, "cpu"))
    with pytest.raises(KernelError, match=r"is torch.float32, which takes no scales"):
        backend.allocate_kv_cache(a_spec(torch.float32), some_scales(3, "cpu", 2))
    with pytest.raises(KernelError, match=r"key_cache is torch.float32, must be torch.uint8"):
        by_triton(a_paged_case([1], [3]), scales=some_scales(3, "cpu"))
