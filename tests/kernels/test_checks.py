"""What an operation cannot take is refused in words that name the tensor, what was given and what is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from octavo_kernels import (
    copy_blocks,
    rms_norm,
    rms_norm_ref,
    rotary,
    rotary_ref,
    sample,
    sample_ref,
    silu_and_mul,
    silu_and_mul_ref,
    store_kv,
    store_kv_ref,
    torch_elementwise,
    torch_sampling,
)
from octavo_kernels.backend import KernelBackend
from octavo_kernels.errors import KernelError
from octavo_kernels.handles import KVCacheSpec
from octavo_kernels.torch_backend import TorchBackend
from octavo_testing.kernels import a_paged_case, a_sampling_batch

ONES = torch.ones


def transposed(*shape: int) -> torch.Tensor:
    """A tensor of this shape whose last dimension is not contiguous."""
    return ONES(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)


@pytest.mark.parametrize("module", [rms_norm, rms_norm_ref, torch_elementwise], ids=["triton", "reference", "torch"])
@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (ONES(2, 8), ONES(6), r"weight has shape \[6\], must be \[8\]"),
        (ONES(2, 8).int(), ONES(8), r"x is torch.int32, must be one of"),
        (ONES(1, 1, 2, 8), ONES(8), r"x has shape \[1, 1, 2, 8\], rms_norm takes 1 to 3"),
        (transposed(2, 8), ONES(8), r"x has stride 2 in its last dimension, must be 1"),
    ],
)
def test_rms_norm_refuses(module: object, x: torch.Tensor, weight: torch.Tensor, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        module.rms_norm(x, weight, 1e-5)  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", [rms_norm, rms_norm_ref, torch_elementwise], ids=["triton", "reference", "torch"])
@pytest.mark.parametrize(
    ("residual", "message"),
    [
        (ONES(3, 8), r"residual has shape \[3, 8\], must be \[2, 8\]"),
        (ONES(2, 8).half(), "residual is torch.float16, must be torch.float32"),
        (transposed(2, 8), "residual has stride 2"),
    ],
)
def test_add_rms_norm_refuses(module: object, residual: torch.Tensor, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        module.add_rms_norm(ONES(2, 8), residual, ONES(8), 1e-5)  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", [rotary, rotary_ref, torch_elementwise], ids=["triton", "reference", "torch"])
@pytest.mark.parametrize(
    ("k", "cos_sin", "positions", "message"),
    [
        (ONES(3, 1, 8), ONES(9, 8), torch.arange(2), r"k has shape \[3, 1, 8\], must be \[2, any, 8\]"),
        (ONES(2, 1, 8).half(), ONES(9, 8), torch.arange(2), "k is torch.float16, must be torch.float32"),
        (ONES(2, 1, 8), ONES(9, 10), torch.arange(2), "cos_sin has 10 columns, must be even and at most head_dim 8"),
        (ONES(2, 1, 8), ONES(9, 7), torch.arange(2), "cos_sin has 7 columns"),
        (ONES(2, 1, 8), ONES(9, 8).half(), torch.arange(2), "cos_sin is torch.float16, must be torch.float32"),
        (ONES(2, 1, 8), ONES(9, 8), torch.arange(3), r"positions has shape \[3\], must be \[2\]"),
        (ONES(2, 1, 8), ONES(9, 8), torch.arange(2).int(), "positions is torch.int32, must be torch.int64"),
        (transposed(2, 1, 8), ONES(9, 8), torch.arange(2), None),
        (transposed(2, 2, 8), ONES(9, 8), torch.arange(2), "k has stride 2 in its last dimension"),
    ],
)
def test_rotary_refuses(
    module: object, k: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor, message: str | None
) -> None:
    if message is None:
        # one head: the transposition left it contiguous
        module.rotary(ONES(2, 3, 8), k, cos_sin, positions)  # type: ignore[attr-defined]
        return
    with pytest.raises(KernelError, match=message):
        module.rotary(ONES(2, 3, 8), k, cos_sin, positions)  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", [store_kv, store_kv_ref], ids=["triton", "reference"])
@pytest.mark.parametrize(
    ("k", "value_cache", "slots", "message"),
    [
        (ONES(2, 4, 8), ONES(2, 3, 16, 8), torch.arange(2), r"k has shape \[2, 4, 8\], must be \[2, 3, 8\]"),
        (ONES(2, 3, 8).half(), ONES(2, 3, 16, 8), torch.arange(2), "k is torch.float16, must be torch.float32"),
        (ONES(2, 3, 8), ONES(2, 3, 8, 8), torch.arange(2), r"value_cache has shape \[2, 3, 8, 8\], must be"),
        (ONES(2, 3, 8), ONES(2, 3, 16, 8), torch.arange(2).int(), "slot_mapping is torch.int32, must be torch.int64"),
        (transposed(2, 3, 8), ONES(2, 3, 16, 8), torch.arange(2), "k has stride 3 in its last dimension, must be 1"),
    ],
)
def test_store_kv_refuses(
    module: object, k: torch.Tensor, value_cache: torch.Tensor, slots: torch.Tensor, message: str
) -> None:
    with pytest.raises(KernelError, match=message):
        module.store_kv(k, ONES(2, 3, 8), ONES(2, 3, 16, 8), value_cache, slots)  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", [silu_and_mul, silu_and_mul_ref, torch_elementwise], ids=["triton", "ref", "torch"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (ONES(2, 7), "x has 7 columns, silu_and_mul needs an even number"),
        (ONES(2, 2, 2), r"x has shape \[2, 2, 2\], must have 2 dimensions"),
        (transposed(2, 8), "x has stride 2"),
        (ONES(2, 8).long(), "x is torch.int64"),
    ],
)
def test_silu_and_mul_refuses(module: object, x: torch.Tensor, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        module.silu_and_mul(x)  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", [sample, sample_ref, torch_sampling], ids=["triton", "reference", "torch"])
@pytest.mark.parametrize(
    ("logits", "change", "message"),
    [
        (ONES(2, 5).half(), {}, "logits is torch.float16, must be torch.float32"),
        (transposed(2, 5), {}, "logits has stride 2"),
        (ONES(2, 0), {}, "logits has 0 columns"),
        (ONES(2, 5), {"seed": torch.zeros(2)}, "seed is torch.float32, must be torch.int64"),
        (ONES(2, 5), {"top_k": torch.zeros(3, dtype=torch.int32)}, r"top_k has shape \[3\], must be \[2\]"),
        (ONES(2, 5), {"min_p": torch.zeros(2).double()}, "min_p is torch.float64, must be torch.float32"),
    ],
)
def test_sample_refuses(module: object, logits: torch.Tensor, change: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(KernelError, match=message):
        module.sample(logits, replace(a_sampling_batch(2), **change))  # type: ignore[attr-defined]


def test_copy_blocks_refuses_lists_of_different_lengths_and_caches_it_cannot_walk() -> None:
    keys = ONES(1, 4, 2, 4, 8)
    with pytest.raises(KernelError, match=r"destination has shape \[1\], must be \[2\]"):
        copy_blocks.copy_blocks(keys, keys.clone(), torch.tensor([1, 2]), torch.tensor([3]))
    with pytest.raises(KernelError, match="must be contiguous and of one shape"):
        copy_blocks.copy_blocks(keys.transpose(2, 3), keys, torch.tensor([1]), torch.tensor([3]))


def a_spec(**changes: int | torch.dtype) -> KVCacheSpec:
    spec = KVCacheSpec(num_layers=2, num_blocks=40, block_size=16, num_kv_heads=3, head_dim=24, dtype=torch.float32)
    return replace(spec, **changes)  # type: ignore[arg-type]


def backends() -> list[Callable[[], KernelBackend]]:
    from octavo_kernels.triton_backend import TritonBackend

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    return [lambda: TorchBackend(torch.device("cpu")), lambda: TritonBackend(device)]


@pytest.mark.parametrize("make", backends(), ids=["torch", "triton"])
def test_backends_refuse_what_cannot_be_a_cache_a_batch_or_a_layer(make: Callable[[], KernelBackend]) -> None:
    backend = make()
    case = a_paged_case([1, 3], [20, 5], device=str(backend.device))
    cache = backend.allocate_kv_cache(a_spec())
    plan = backend.plan_attention(case.batch, cache, 6)

    def refuses(message: str, call: Callable[[], object]) -> None:
        with pytest.raises(KernelError, match=message):
            call()

    refuses("head_dim is 0, must be at least 1", lambda: backend.allocate_kv_cache(a_spec(head_dim=0)))
    refuses("is torch.int8, must be one of", lambda: backend.allocate_kv_cache(a_spec(dtype=torch.int8)))
    refuses("7 query heads are no multiple of 3", lambda: backend.plan_attention(case.batch, cache, 7))
    refuses("window is 0, must be at least 1", lambda: backend.plan_attention(case.batch, cache, 6, window=0))
    wide = replace(case.batch, max_seq_len=33)
    refuses(
        "max_seq_len is 33, but .* 2 blocks of 16 tokens, .* hold 32", lambda: backend.plan_attention(wide, cache, 6)
    )
    long = replace(case.batch, max_query_len=21)
    refuses(
        "max_query_len 21 must be between 1 and max_seq_len, which is 20",
        lambda: backend.plan_attention(long, cache, 6),
    )
    short_of = replace(case.batch, min_query_len=case.batch.max_query_len + 1)
    refuses(
        r"min_query_len \d+ must be between 1 and max_query_len", lambda: backend.plan_attention(short_of, cache, 6)
    )
    typed = replace(case.batch, seq_lens=case.batch.seq_lens.long())
    refuses("seq_lens is torch.int64, must be torch.int32", lambda: backend.plan_attention(typed, cache, 6))
    short = replace(case.batch, query_start_loc=case.batch.query_start_loc[:2])
    refuses(r"query_start_loc has shape \[2\], must be \[3\]", lambda: backend.plan_attention(short, cache, 6))
    refuses("layer 2 is not in the cache, which has 2", lambda: backend.attention(case.q, cache, 2, plan, 0.2))
    refuses(
        r"q has shape \[3, 6, 24\], must be \[4, 6, 24\]", lambda: backend.attention(case.q[:3], cache, 0, plan, 0.2)
    )
    refuses("q is torch.float16, must be torch.float32", lambda: backend.attention(case.q.half(), cache, 0, plan, 0.2))


@pytest.mark.parametrize("make", backends(), ids=["torch", "triton"])
def test_backends_refuse_a_linear_layer_of_another_width_or_dtype(make: Callable[[], KernelBackend]) -> None:
    backend = make()
    handle = backend.prepare_linear(ONES(5, 8), ONES(5))

    for x, message in (
        (ONES(2, 7), "x has 7 features, the linear layer takes 8"),
        (ONES(2, 8).half(), "x is torch.float16, must be torch.float32"),
        (ONES(8), r"x has shape \[8\], must have 2 dimensions"),
    ):
        with pytest.raises(KernelError, match=message):
            backend.linear(x.to(backend.device), handle)
    with pytest.raises(KernelError, match=r"bias has shape \[4\], must be \[5\]"):
        backend.prepare_linear(ONES(5, 8), ONES(4))


def test_a_handle_of_another_backend_is_refused() -> None:
    torch_backend, triton_backend = (make() for make in backends())
    cache = torch_backend.allocate_kv_cache(a_spec())

    with pytest.raises(KernelError, match="handle is a TorchKVCache, this backend reads its own TritonKVCache only"):
        triton_backend.copy_blocks(cache, torch.tensor([1]), torch.tensor([2]))
