"""Experts of 4 bits, of 8 and of float8: how they lie in memory, and the grouped products against the reference."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch

from octavo_kernels import fp8_linear_ref, fused_moe, fused_moe_ref, moe_routing_ref, packed_products
from octavo_kernels.errors import KernelError
from octavo_kernels.expert_matrices import ExpertMatrices, Fp8Matrices, PackedMatrices, stack_fp8, stack_packed
from octavo_kernels.fp8_weight import quantize_fp8
from octavo_kernels.grouped_products import ExpertTiling
from octavo_kernels.handles import LinearHandle
from octavo_kernels.packed_products import PackedTiling
from octavo_kernels.packed_weight import pack
from octavo_kernels.quantized_weight import QuantizedWeight, quantize
from octavo_kernels.torch_backend import TorchBackend
from octavo_kernels.torch_elementwise import silu_and_mul
from octavo_kernels.triton_backend import TritonBackend
from octavo_testing.kernels import TOLERANCE, assert_close

FEW = ExpertTiling(tile=16, block_n=16, block_k=16, num_warps=4, num_stages=2)
MANY = ExpertTiling(tile=32, block_n=32, block_k=16, num_warps=4, num_stages=2)
TILINGS = pytest.mark.parametrize("tiling", [FEW, MANY], ids=["few", "many"])
KINDS = pytest.mark.parametrize("kind", ["int4", "int8", "fp8"])
LIMITS = {torch.float32: 5e-5, torch.float16: 2e-3, torch.bfloat16: 0.1}
"""The interpreter cuts bfloat16 off where it should round, or does not round at all: weights are a part in 128 away."""


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrices_of(kind: str, weights: torch.Tensor, device: str, group: int = 32) -> ExpertMatrices:
    """weights: [num_experts, out, in] float32."""
    if kind == "fp8":
        return stack_fp8([quantize_fp8(weight.to(device)) for weight in weights])
    bits = {"int4": 4, "int8": 8}[kind]
    return stack_packed([pack(in_groups(quantize(each, bits), group), torch.device(device)) for each in weights])


def in_groups(weight: QuantizedWeight, group: int) -> QuantizedWeight:
    """Other numbers: every group of so many inputs has the scale of its first 32."""
    step = group // 32
    return replace(weight, scales=weight.scales[:, ::step], minima=weight.minima[:, ::step])


def a_case(
    kind: str,
    num_tokens: int,
    device: str,
    dtype: torch.dtype = torch.float32,
    sizes: tuple[int, int, int, int] = (5, 2, 96, 80),
    group: int = 32,
) -> tuple[torch.Tensor, ExpertMatrices, ExpertMatrices, torch.Tensor, torch.Tensor]:
    """x, gate_up, down, ids, shares; sizes: experts, those chosen, hidden, inner. `down` is whole where inner has no groups."""
    num_experts, num_chosen, hidden, inner = sizes
    ids, shares = moe_routing_ref.route(random(1, num_tokens, num_experts), num_chosen, renormalizes=False)
    gate_up, down = random(2, num_experts, 2 * inner, hidden) * 0.2, random(3, num_experts, hidden, inner) * 0.2
    x = random(4, num_tokens, hidden).to(device, dtype)
    is_whole = kind != "fp8" and inner % group
    return (
        x,
        matrices_of(kind, gate_up, device, group),
        down.to(device, dtype) if is_whole else matrices_of(kind, down, device, group),
        ids.to(device),
        shares.to(device),
    )


@pytest.fixture
def backend(device: str) -> TritonBackend:
    return TritonBackend(torch.device("cuda", 0) if device == "cuda" else torch.device("cpu"))


def prepared(backend: TritonBackend, kind: str, weights: torch.Tensor) -> list[LinearHandle]:
    if kind == "fp8":
        return [backend.prepare_fp8_linear(weight) for weight in weights]
    return [backend.prepare_quantized_linear(quantize(weight, 4 if kind == "int4" else 8)) for weight in weights]


@pytest.mark.parametrize("bits", [4, 8])
def test_a_stack_means_what_its_parts_mean(bits: int, device: str) -> None:
    """Also where the scales of one expert are a thousandth of another's, or 0: they have one factor in the end."""
    weights = random(1, 3, 24, 96) * torch.tensor([1.0, 1e-3, 0.0])[:, None, None]
    parts = [quantize(weight, bits) for weight in weights]

    stack = stack_packed([pack(part, torch.device(device)) for part in parts])

    assert stack.shape == (3, 24, 96)
    assert torch.equal(stack.numbers().cpu(), torch.stack([part.dequantize() for part in parts]))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_reference_of_few_bits_is_that_of_the_written_out_weights(bits: int) -> None:
    x, gate_up, down, ids, shares = a_case(f"int{bits}", 7, "cpu", sizes=(5, 2, 96, 64))
    weights = random(2, 5, 128, 96) * 0.2, random(3, 5, 96, 64) * 0.2

    out = fused_moe_ref.fused_moe(x, gate_up, down, ids, shares)

    written = [torch.stack([quantize(each, bits).dequantize() for each in matrices]) for matrices in weights]
    assert_close(out, fused_moe_ref.fused_moe(x, *written, ids, shares), 1e-6)


def test_the_reference_of_float8_is_that_of_two_linear_layers() -> None:
    x, gate_up, down, ids, shares = a_case("fp8", 7, "cpu", torch.bfloat16)
    assert isinstance(gate_up, Fp8Matrices)
    assert isinstance(down, Fp8Matrices)
    parts = [[quantize_fp8(each) for each in weights] for weights in (gate_up.numbers(), down.numbers())]

    out = fused_moe_ref.fused_moe(x, gate_up, down, ids, shares)

    expected = torch.zeros(7, 96)
    for token, experts in enumerate(ids.tolist()):
        for slot, expert in enumerate(experts):
            both = fp8_linear_ref.fp8_linear(x[token : token + 1], parts[0][expert], None)
            part = fp8_linear_ref.fp8_linear(silu_and_mul(both), parts[1][expert], None)[0]
            expected[token] += shares[token, slot] * part.float()
    # there gate and up are rounded too, which turns a code here and there
    assert float((out.float() - expected).std() / expected.std()) < 0.02


@TILINGS
@pytest.mark.parametrize(
    ("bits", "num_tokens", "sizes", "group", "dtype"),
    [
        (4, 1, (5, 2, 96, 80), 32, torch.float32),
        (8, 19, (3, 3, 96, 64), 32, torch.float32),
        (4, 19, (3, 3, 96, 64), 32, torch.bfloat16),
        (4, 9, (8, 1, 32, 96), 32, torch.float16),
        (8, 9, (8, 1, 32, 96), 32, torch.bfloat16),
        (8, 1, (5, 2, 96, 80), 32, torch.float16),
        (4, 5, (3, 2, 128, 128), 128, torch.float32),
        (8, 5, (3, 2, 128, 64), 64, torch.float32),
    ],
)
def test_products_of_few_bits_equal_the_reference(
    bits: int,
    num_tokens: int,
    sizes: tuple[int, int, int, int],
    group: int,
    dtype: torch.dtype,
    tiling: ExpertTiling,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Chunks that are no multiple of a step's, columns of a block's, pairs of a tile's; `down` whole beside few bits."""
    packed = PackedTiling(block_n=tiling.block_n, step_chunks=2, num_warps=4, num_stages=2)
    monkeypatch.setattr(fused_moe, "expert_tiling", lambda *_: tiling)
    monkeypatch.setattr(packed_products, "packed_tiling", lambda *_: packed)
    case = a_case(f"int{bits}", num_tokens, device, dtype, sizes, group)

    out = fused_moe.fused_moe(*case)

    assert isinstance(case[1], PackedMatrices)
    assert case[1].group == group
    assert_close(out, fused_moe_ref.fused_moe(*case), LIMITS[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@TILINGS
@pytest.mark.parametrize(("num_tokens", "sizes"), [(1, (5, 2, 96, 80)), (33, (3, 3, 48, 32)), (9, (8, 1, 16, 112))])
def test_products_of_float8_equal_the_reference(
    num_tokens: int,
    sizes: tuple[int, int, int, int],
    tiling: ExpertTiling,
    dtype: torch.dtype,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In float32 what is rounded between the products may be rounded the other way, where sums are of another order."""
    monkeypatch.setattr(fused_moe, "expert_tiling", lambda *_: tiling)
    case = a_case("fp8", num_tokens, device, dtype, sizes)

    out = fused_moe.fused_moe(*case)

    expected = fused_moe_ref.fused_moe(*case)
    assert float((out.float() - expected.float()).abs().max() / expected.float().abs().max()) < 0.02


@TILINGS
@KINDS
@pytest.mark.parametrize("popular", [0, 4])
def test_a_router_that_favours_one_expert(
    kind: str, popular: int, tiling: ExpertTiling, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several tiles of one expert, one row of another, no token for the rest."""
    monkeypatch.setattr(fused_moe, "expert_tiling", lambda *_: tiling)
    x, gate_up, down, _, shares = a_case(kind, 70, device, sizes=(5, 1, 32, 32))
    ids = torch.full((70, 1), popular, device=device)
    ids[47] = 3

    out = fused_moe.fused_moe(x, gate_up, down, ids, shares)

    expected = fused_moe_ref.fused_moe(x, gate_up, down, ids, shares)
    assert float((out - expected).abs().max() / expected.abs().max()) < (0.02 if kind == "fp8" else 5e-5)


@KINDS
def test_a_backend_stacks_what_it_has_prepared(kind: str, backend: TritonBackend) -> None:
    gate_up, down = random(2, 5, 128, 96) * 0.2, random(3, 5, 96, 64) * 0.2
    x, wanted_gate_up, wanted_down, ids, shares = a_case(kind, 3, backend.device.type, sizes=(5, 2, 96, 64))

    handle = backend.prepare_quantized_experts(prepared(backend, kind, gate_up), prepared(backend, kind, down))

    assert (handle.num_experts, handle.hidden_size, handle.inner_size) == (5, 96, 64)
    out = backend.experts(x, handle, ids, shares)
    assert_close(out, fused_moe.fused_moe(x, wanted_gate_up, wanted_down, ids, shares), 1e-6)


def test_a_matrix_that_stays_exact_stands_beside_one_of_few_bits(backend: TritonBackend) -> None:
    """40 inner columns are no groups."""
    gate_up, down = random(2, 5, 80, 96) * 0.2, random(3, 5, 96, 40) * 0.2
    x, *_, ids, shares = a_case("int4", 3, backend.device.type, sizes=(5, 2, 96, 64))
    exact = [backend.prepare_linear(weight) for weight in down]

    out = backend.experts(x, backend.prepare_quantized_experts(prepared(backend, "int4", gate_up), exact), ids, shares)

    rounded = torch.stack([quantize(weight, 4).dequantize() for weight in gate_up]).to(x.device)
    assert_close(out, fused_moe_ref.fused_moe(x, rounded, down.to(x.device), ids, shares), 5e-5)


def test_rows_of_float8_do_not_stand_beside_their_codes_and_the_parts(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a step takes no more than one through exact experts, which is what is planned."""
    rows: list[weakref.ref[torch.Tensor]] = []
    gate_up_product, down_product = fused_moe.gate_up_product, fused_moe.down_product

    def noting(x: torch.Tensor, matrices: Fp8Matrices, inner_rows: torch.Tensor, *others: Any) -> None:
        rows.append(weakref.ref(inner_rows))
        gate_up_product(x, matrices, inner_rows, *others)

    def checking(*given: Any) -> None:
        assert rows[0]() is None
        down_product(*given)

    monkeypatch.setattr(fused_moe, "gate_up_product", noting)
    monkeypatch.setattr(fused_moe, "down_product", checking)

    fused_moe.fused_moe(*a_case("fp8", 3, device))

    assert len(rows) == 1


@KINDS
def test_a_token_is_the_same_whatever_stands_beside_it(kind: str, device: str) -> None:
    """Both are few tokens, so that the tiles are the same."""
    x, gate_up, down, ids, shares = a_case(kind, 12, device, sizes=(5, 2, 64, 64))

    together = fused_moe.fused_moe(x, gate_up, down, ids, shares)

    alone = [fused_moe.fused_moe(x[i : i + 1], gate_up, down, ids[i : i + 1], shares[i : i + 1]) for i in (0, 7)]
    assert torch.equal(torch.cat(alone), together[[0, 7]])


# the interpreter computes with numpy, which warns
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning", "ignore:All-NaN slice:RuntimeWarning")
@KINDS
def test_a_row_of_no_numbers_stays_alone_and_is_seen(kind: str, device: str) -> None:
    x, gate_up, down, ids, shares = a_case(kind, 8, device, sizes=(5, 2, 32, 32))
    x[3, 5] = torch.nan

    out = fused_moe.fused_moe(x, gate_up, down, ids, shares)

    assert out.isnan().any(dim=1).nonzero().tolist() == [[3]]


@KINDS
def test_rows_are_read_by_their_stride_and_none_give_none(kind: str, device: str) -> None:
    x, *rest = a_case(kind, 5, device, sizes=(5, 2, 64, 32))
    wide = torch.full((5, 100), torch.nan, device=device)
    wide[:, 7:71] = x

    out = fused_moe.fused_moe(wide[:, 7:71], *rest)

    assert torch.equal(out, fused_moe.fused_moe(x, *rest))
    gate_up, down, ids, shares = rest
    assert fused_moe.fused_moe(x[:0], gate_up, down, ids[:0], shares[:0]).shape == (0, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_the_two_tiles_have_a_cut_each(bits: int, dtype: torch.dtype) -> None:
    """So that a warm-up of a large prefill and of decodes leaves none to be compiled while requests wait."""
    tiles = {fused_moe.expert_tiling(pairs, 128, dtype).tile for pairs in range(8, 8 * 8192, 8)}

    assert len({packed_products.packed_tiling(tile, bits, dtype) for tile in tiles}) == len(tiles) == 2


def test_experts_that_are_not_alike_are_refused(backend: TritonBackend) -> None:
    weights = random(1, 2, 64, 32)
    few, more, fp8 = (prepared(backend, kind, weights) for kind in ("int4", "int8", "fp8"))

    with pytest.raises(KernelError, match="4 bits in groups of 32 and 8 bits in groups of 32; they must have the same"):
        backend.prepare_quantized_experts([few[0], more[1]], few)
    with pytest.raises(KernelError, match="must be all of one, and have no bias"):
        backend.prepare_quantized_experts([few[0], fp8[1]], few)
    biased = backend.prepare_quantized_linear(quantize(weights[0], 4), torch.zeros(64))
    with pytest.raises(KernelError, match="must be all of one, and have no bias"):
        backend.prepare_quantized_experts([few[0], biased], few)
    with pytest.raises(KernelError, match=r"down has shape \[2, 64, 32\], must be \[2, 32, 32\]"):
        backend.prepare_quantized_experts(few, few)
    other = TorchBackend(torch.device("cpu")).prepare_linear(weights[0])
    with pytest.raises(KernelError, match="TorchLinear"):
        backend.prepare_quantized_experts([other], few)


@pytest.mark.gpu
@KINDS
@pytest.mark.parametrize("num_tokens", [8, 2048])
def test_real_sizes_on_a_gpu(kind: str, num_tokens: int) -> None:
    """A few rows of Qwen3-30B-A3B's experts against the reference."""
    x, gate_up, down, ids, shares = a_case(kind, num_tokens, "cuda", torch.bfloat16, (128, 8, 2048, 768))

    out = fused_moe.fused_moe(x, gate_up, down, ids, shares)[:8].float()
    expected = fused_moe_ref.fused_moe(x[:8], gate_up, down, ids[:8], shares[:8]).float()

    assert (out - expected).abs().max() <= 2 * TOLERANCE[torch.bfloat16] * expected.abs().max()
