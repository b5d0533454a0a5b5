"""Mixtures of experts: routing, the sort into tiles and the grouped products, each against its reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo_kernels import fused_moe, fused_moe_ref, moe_align, moe_align_ref, moe_routing_ref
from octavo_kernels.backend import KernelBackend
from octavo_kernels.errors import KernelError
from octavo_kernels.fused_moe import ExpertTiling
from octavo_kernels.moe_tiles import max_tiles
from octavo_kernels.numba_backend import NumbaBackend
from octavo_kernels.quantized_weight import quantize
from octavo_kernels.torch_backend import TorchBackend
from octavo_kernels.triton_backend import TritonBackend
from octavo_testing.kernels import TOLERANCE, assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FEW = ExpertTiling(tile=16, block_n=16, block_k=32, num_warps=4, num_stages=2)
MANY = ExpertTiling(tile=32, block_n=32, block_k=32, num_warps=4, num_stages=2)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_case(
    num_tokens: int, dtype: torch.dtype = torch.float32, sizes: tuple[int, int, int, int] = (5, 2, 72, 40)
) -> tuple[torch.Tensor, ...]:
    """x, gate_up, down, ids, shares; sizes: experts, those chosen, hidden, inner."""
    num_experts, num_chosen, hidden, inner = sizes
    ids, shares = moe_routing_ref.route(random(1, num_tokens, num_experts), num_chosen, renormalizes=False)
    gate_up, down = random(2, num_experts, 2 * inner, hidden) * 0.2, random(3, num_experts, hidden, inner) * 0.2
    return random(4, num_tokens, hidden).to(dtype), gate_up.to(dtype), down.to(dtype), ids, shares


@pytest.fixture(params=["torch", "triton", "numba"])
def backend(request: pytest.FixtureRequest) -> KernelBackend:
    if request.param == "torch":
        return TorchBackend(torch.device("cpu"))
    if request.param == "numba":
        return NumbaBackend(2)
    return TritonBackend(torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))


def test_the_reference_of_routing_is_topk_of_the_softmax() -> None:
    logits = random(1, 9, 7)

    ids, shares = moe_routing_ref.route(logits, 3, renormalizes=True)

    expected = logits.softmax(dim=-1).topk(3)
    assert torch.equal(ids, expected.indices)
    assert_close(shares, expected.values / expected.values.sum(dim=-1, keepdim=True))


@pytest.mark.parametrize("renormalizes", [False, True])
@pytest.mark.parametrize(("num_experts", "num_chosen"), [(1, 1), (5, 2), (7, 7), (128, 8)])
def test_routing_equals_the_reference(
    backend: KernelBackend, num_experts: int, num_chosen: int, renormalizes: bool
) -> None:
    logits = random(1, 9, num_experts + 3)[:, :num_experts].to(backend.device)

    ids, shares = backend.route(logits, num_chosen, renormalizes=renormalizes)

    expected_ids, expected_shares = moe_routing_ref.route(logits, num_chosen, renormalizes=renormalizes)
    assert torch.equal(ids, expected_ids)
    assert_close(shares, expected_shares)


def test_ties_go_to_the_lowest_ids(backend: KernelBackend) -> None:
    logits = torch.zeros(3, 6, device=backend.device)
    logits[1, 4] = logits[1, 2] = 1.0
    logits[2, 5] = 1.0

    ids, _ = backend.route(logits, 3, renormalizes=False)

    assert ids.tolist() == [[0, 1, 2], [2, 4, 0], [5, 0, 1]]


# the interpreter computes with numpy, which warns
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_what_is_not_a_number_chooses_experts_that_exist_and_stays_in_its_row(backend: KernelBackend) -> None:
    logits = random(1, 3, 5).to(backend.device)
    logits[1, 2] = torch.nan

    ids, shares = backend.route(logits, 2, renormalizes=True)

    assert 0 <= int(ids.min()) <= int(ids.max()) < 5
    assert shares.isnan().all(dim=1).tolist() == shares.isnan().any(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("num_chosen", [0, 6])
def test_more_experts_than_there_are_cannot_be_chosen(backend: KernelBackend, num_chosen: int) -> None:
    with pytest.raises(KernelError, match=f"num_chosen is {num_chosen}, must be between 1 and the 5 experts"):
        backend.route(torch.zeros(2, 5, device=backend.device), num_chosen, renormalizes=True)


@pytest.mark.parametrize("tile", [16, 128])
@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "num_chosen"), [(1, 3, 1), (7, 5, 2), (3, 129, 8), (700, 4, 3), (40, 1, 1)]
)
def test_pairs_are_sorted_as_by_the_reference(
    num_tokens: int, num_experts: int, num_chosen: int, tile: int, device: str
) -> None:
    ids = moe_routing_ref.route(random(1, num_tokens, num_experts), num_chosen, renormalizes=False)[0].to(device)

    tiles = moe_align.align(ids, num_experts, tile)

    expected = moe_align_ref.align(ids, num_experts, tile)
    num_used = int((expected.experts >= 0).sum())
    assert torch.equal(tiles.experts, expected.experts)
    assert torch.equal(tiles.order[: num_used * tile], expected.order[: num_used * tile])


@pytest.mark.parametrize("chosen", [[0], [0, 1, 2, 3, 4], [4] * 40, [2] * 17 + [3]])
def test_every_choice_fits_into_the_most_tiles(chosen: list[int], device: str) -> None:
    """Whatever the router does, as memory is reserved before it is known."""
    tiles = moe_align.align(torch.tensor(chosen, device=device)[:, None], 5, 16)

    needed = sum(-(-chosen.count(expert) // 16) for expert in range(5))
    assert int((tiles.experts >= 0).sum()) == needed <= tiles.experts.shape[0] == max_tiles(len(chosen), 5, 16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tiling", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize(
    ("num_tokens", "sizes"), [(1, (5, 2, 72, 40)), (63, (5, 2, 72, 40)), (33, (3, 3, 40, 24)), (9, (8, 1, 17, 33))]
)
def test_grouped_products_equal_the_reference(
    num_tokens: int,
    sizes: tuple[int, int, int, int],
    tiling: ExpertTiling,
    dtype: torch.dtype,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fused_moe, "expert_tiling", lambda *_: tiling)
    case = [tensor.to(device) for tensor in a_case(num_tokens, dtype, sizes)]

    out = fused_moe.fused_moe(*case)

    assert_close(out, fused_moe_ref.fused_moe(*case), 2e-5 if dtype == torch.float32 else TOLERANCE[dtype])


@pytest.mark.parametrize("tiling", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize("popular", [0, 2, 4])
def test_a_router_that_favours_one_expert(
    popular: int, tiling: ExpertTiling, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several tiles of one expert, one row of another, no token for the rest."""
    monkeypatch.setattr(fused_moe, "expert_tiling", lambda *_: tiling)
    x, gate_up, down, _, shares = (tensor.to(device) for tensor in a_case(140, torch.float32, (5, 1, 24, 17)))
    ids = torch.full((140, 1), popular, device=device)
    ids[77] = 3

    out = fused_moe.fused_moe(x, gate_up, down, ids, shares)

    assert_close(out, fused_moe_ref.fused_moe(x, gate_up, down, ids, shares), 2e-5)


def test_the_tiling_follows_how_many_rows_an_expert_has() -> None:
    few, many = (fused_moe.expert_tiling(pairs, 128, torch.bfloat16) for pairs in (8, 32 * 128))

    assert (few.tile, many.tile) == (16, 128)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_large_prefill_and_decodes_meet_every_tiling(dtype: torch.dtype) -> None:
    """So that a warm-up of both leaves none to be compiled while requests wait."""
    tilings = {fused_moe.expert_tiling(pairs, 128, dtype) for pairs in range(8, 8 * 8192, 8)}

    assert tilings == {fused_moe.expert_tiling(pairs, 128, dtype) for pairs in (8, 8 * 8192)}


def test_rows_are_read_by_their_stride(device: str) -> None:
    x, *rest = [tensor.to(device) for tensor in a_case(5)]
    wide = torch.zeros(5, 100, device=device)
    wide[:, 7:79] = x

    assert_close(fused_moe.fused_moe(wide[:, 7:79], *rest), fused_moe_ref.fused_moe(x, *rest), 2e-5)


@pytest.mark.parametrize("num_tokens", [1, 2, 21])
def test_experts_are_the_reference_on_every_backend(backend: KernelBackend, num_tokens: int) -> None:
    x, gate_up, down, ids, shares = (tensor.to(backend.device) for tensor in a_case(num_tokens))
    handle = backend.prepare_experts(gate_up, down)

    out = backend.experts(x, handle, ids, shares)

    assert (handle.num_experts, handle.hidden_size, handle.inner_size) == (5, 72, 40)
    assert_close(out, fused_moe_ref.fused_moe(x, gate_up, down, ids, shares), 2e-5)


def test_a_token_is_the_same_whatever_stands_beside_it(backend: KernelBackend) -> None:
    """Its mates go to other experts, or crowd into its own; both batches are as large, so that the tiles are the same."""
    x, gate_up, down, ids, shares = (tensor.to(backend.device) for tensor in a_case(24))
    handle = backend.prepare_experts(gate_up, down)
    crowded = ids[:1].repeat(24, 1)

    one = backend.experts(x, handle, ids, shares)[0]

    assert_close(backend.experts(x, handle, crowded, shares)[0], one, 1e-6)
    assert_close(backend.experts(x[:1], handle, ids[:1], shares[:1])[0], one, 1e-6)


def test_a_row_of_no_numbers_stays_alone(backend: KernelBackend) -> None:
    x, gate_up, down, ids, shares = (tensor.to(backend.device) for tensor in a_case(20))
    x[3, 5] = torch.nan

    out = backend.experts(x, backend.prepare_experts(gate_up, down), ids, shares)

    assert out.isnan().any(dim=1).nonzero().tolist() == [[3]]


def test_no_tokens_give_no_rows(backend: KernelBackend) -> None:
    x, gate_up, down, ids, shares = (tensor.to(backend.device) for tensor in a_case(2))

    out = backend.experts(x[:0], backend.prepare_experts(gate_up, down), ids[:0], shares[:0])

    assert out.shape == (0, 72)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_experts_of_16_bits_on_a_cpu(dtype: torch.dtype) -> None:
    """Gate, up and each expert's result are rounded too, which the kernels keep in float32."""
    x, gate_up, down, ids, shares = a_case(7, dtype)
    backend = TorchBackend(torch.device("cpu"))

    out = backend.experts(x, backend.prepare_experts(gate_up, down), ids, shares)

    assert_close(out, fused_moe_ref.fused_moe(x, gate_up, down, ids, shares), 4 * TOLERANCE[dtype])


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_experts_are_near_their_rounded_weights(bits: int) -> None:
    """Activations of 8 bits cost some hundredths; and a token is bit for bit the same alone and among others."""
    x, gate_up, down, ids, shares = a_case(21, sizes=(5, 2, 96, 64))
    backend = NumbaBackend(2)
    parts = [[quantize(weight, bits) for weight in weights] for weights in (gate_up, down)]
    handles = [[backend.prepare_quantized_linear(part) for part in each] for each in parts]
    handle = backend.prepare_quantized_experts(*handles)

    out = backend.experts(x, handle, ids, shares)

    rounded = [torch.stack([part.dequantize() for part in each]) for each in parts]
    exact = fused_moe_ref.fused_moe(x, *rounded, ids, shares)
    assert 0 < float((out - exact).std() / exact.std()) < 0.03
    alone = [backend.experts(x[i : i + 1], handle, ids[i : i + 1], shares[i : i + 1])[0] for i in range(21)]
    assert torch.equal(torch.stack(alone), out)


def test_experts_that_do_not_fit_together_are_refused(backend: KernelBackend) -> None:
    with pytest.raises(KernelError, match=r"down has shape \[5, 40, 72\], must be \[5, 72, 40\]"):
        backend.prepare_experts(torch.zeros(5, 80, 72), torch.zeros(5, 40, 72))
    with pytest.raises(KernelError, match="gate before up"):
        backend.prepare_experts(torch.zeros(5, 81, 72), torch.zeros(5, 72, 40))


def test_linear_layers_that_are_no_experts_are_refused() -> None:
    backend = NumbaBackend(1)
    gate_up, down = backend.prepare_linear(torch.zeros(8, 6)), backend.prepare_linear(torch.zeros(6, 4))

    with pytest.raises(KernelError, match=r"1 gate_up .* and 2 down"):
        backend.prepare_quantized_experts([gate_up], [down, down])
    with pytest.raises(KernelError, match="of one shape"):
        backend.prepare_quantized_experts([gate_up], [backend.prepare_linear(torch.zeros(6, 5))])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(4, 71)}, r"x has shape \[4, 71\]"),
        ({"x": torch.zeros(4, 72, dtype=torch.float64)}, r"x is torch\.float64"),
        ({"expert_ids": torch.zeros(4, 2, dtype=torch.int32)}, r"expert_ids is torch\.int32"),
        ({"expert_ids": torch.zeros(3, 2, dtype=torch.int64)}, "expert_ids has shape"),
        ({"expert_weights": torch.zeros(4, 3)}, "expert_weights has shape"),
        ({"expert_weights": torch.zeros(4, 2, dtype=torch.float16)}, r"expert_weights is torch\.float16"),
    ],
)
def test_other_shapes_and_dtypes_are_refused(backend: KernelBackend, changes: dict[str, Any], message: str) -> None:
    x, gate_up, down, ids, shares = a_case(4)
    given = {"x": x, "expert_ids": ids, "expert_weights": shares} | changes
    given = {name: tensor.to(backend.device) for name, tensor in given.items()}

    with pytest.raises(KernelError, match=message):
        backend.experts(handle=backend.prepare_experts(gate_up, down), **given)


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [8, 2048])
def test_real_sizes_on_a_gpu(num_tokens: int) -> None:
    """A few rows of Qwen3-30B-A3B's experts against the reference."""
    x, gate_up, down, ids, shares = (t.cuda() for t in a_case(num_tokens, torch.bfloat16, (128, 8, 2048, 768)))

    out = fused_moe.fused_moe(x, gate_up, down, ids, shares)[:8].float()
    expected = fused_moe_ref.fused_moe(x[:8], gate_up, down, ids[:8], shares[:8]).float()

    # against the largest: what is rounded on the way is as large as the terms, not as their sum
    assert (out - expected).abs().max() <= TOLERANCE[torch.bfloat16] * expected.abs().max()
