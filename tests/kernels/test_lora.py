"""Adapters of a mixed batch: the reference against torch's own linear layers, the kernels against the reference."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from octavo_kernels import lora, lora_ref
from octavo_kernels.errors import KernelError
from octavo_kernels.lora_weights import NO_ADAPTER, LoraWeights, lora_weights
from octavo_testing.kernels import assert_close

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3.2e-2}
"""Sums of some tens of products, in another order and rounded once."""

QKV = (144, 72, 72)
MIXED = [2, NO_ADAPTER, 0, 2, 2, NO_ADAPTER, 0]


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_weights(
    num_adapters: int, in_features: int, slice_sizes: tuple[int, ...], rank: int, dtype: torch.dtype, device: str
) -> LoraWeights:
    a = numbers(1, num_adapters, len(slice_sizes), rank, in_features) * in_features**-0.5
    b = numbers(2, num_adapters, sum(slice_sizes), rank) * rank**-0.5
    scales = 0.5 + torch.arange(num_adapters)
    return lora_weights(a.to(device, dtype), b.to(device, dtype), scales.to(device), slice_sizes)


def both(ids: list[int], weights: LoraWeights, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """-> what was there before, what the kernels make of it, what the reference does."""
    device, dtype = weights.a.device, weights.a.dtype
    x = numbers(seed, len(ids), weights.in_features).to(device, dtype)
    before = numbers(seed + 1, len(ids), weights.out_features).to(device, dtype)
    mine, theirs = before.clone(), before.clone()
    adapter_ids = torch.tensor(ids, device=device)
    lora.add_lora(mine, x, weights, lora.lora_rows(adapter_ids, weights.num_adapters))
    lora_ref.add_lora(theirs, x, weights, adapter_ids)
    return before, mine, theirs


def test_reference_is_two_linear_layers_and_a_scale() -> None:
    """As peft has it: lora_B(lora_A(x)) * scaling beside each of the layers that were joined."""
    weights = some_weights(3, 40, QKV, 8, torch.float32, "cpu")
    x, out = numbers(3, 7, 40), torch.zeros(7, sum(QKV))

    lora_ref.add_lora(out, x, weights, torch.tensor(MIXED))

    for row, adapter in enumerate(MIXED):
        parts = torch.zeros(sum(QKV)).split(QKV)
        if adapter != NO_ADAPTER:
            up = weights.b[adapter].split(QKV)
            parts = tuple(
                linear(linear(x[row], weights.a[adapter, i]), up[i]) * (0.5 + adapter) for i in range(len(QKV))
            )
        assert_close(out[row], torch.cat(parts), 1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("in_features", "slice_sizes", "rank"),
    [(40, QKV, 8), (72, (100, 100), 64), (1030, (33,), 12), (24, (65, 1, 3), 20)],
)
def test_kernels_equal_the_reference(
    in_features: int, slice_sizes: tuple[int, ...], rank: int, dtype: torch.dtype, device: str
) -> None:
    """An adapter that no row has, rows that have none, slices that no block divides, `in` in two parts."""
    before, mine, theirs = both(MIXED, some_weights(3, in_features, slice_sizes, rank, dtype, device))

    assert_close(mine, theirs, TOLERANCE[dtype])
    without = [row for row, adapter in enumerate(MIXED) if adapter == NO_ADAPTER]
    assert torch.equal(mine[without], before[without])
    assert not torch.equal(mine[0], before[0])


def test_many_rows_are_dealt_in_larger_tiles(device: str) -> None:
    weights = some_weights(2, 24, (40, 8), 16, torch.float32, device)
    ids = [[1, 0, 1, NO_ADAPTER][i % 4] for i in range(150)]

    _, mine, theirs = both(ids, weights)

    assert lora.lora_rows(torch.tensor(ids), 2).tiles.tile == 64
    assert_close(mine, theirs, 1e-5)


def test_rows_without_any_adapter_stay_as_they_are(device: str) -> None:
    before, mine, _ = both([NO_ADAPTER] * 5, some_weights(2, 24, (40,), 8, torch.float32, device))

    assert torch.equal(mine, before)


def test_out_may_be_a_view_of_something_wider(device: str) -> None:
    weights = some_weights(2, 24, (40,), 8, torch.float32, device)
    x, wide = numbers(3, 3, 24).to(device), numbers(4, 3, 60).to(device)
    before, ids = wide.clone(), torch.tensor([1, 0, 1], device=device)

    lora.add_lora(wide[:, 10:50], x, weights, lora.lora_rows(ids, 2))

    wanted = before.clone()
    lora_ref.add_lora(wanted[:, 10:50], x, weights, ids)
    assert_close(wide, wanted, 1e-5)


def test_a_row_does_not_depend_on_its_batch_mates(device: str) -> None:
    weights = some_weights(3, 1030, QKV, 8, torch.float32, device)
    x, out = numbers(3, 7, 1030).to(device), numbers(4, 7, sum(QKV)).to(device)
    alone = out[3:4].clone()

    lora.add_lora(out, x, weights, lora.lora_rows(torch.tensor(MIXED, device=device), 3))
    lora.add_lora(alone, x[3:4], weights, lora.lora_rows(torch.tensor(MIXED[3:4], device=device), 3))

    assert torch.equal(out[3:4], alone)


@pytest.mark.parametrize(
    ("b", "scales", "sizes", "message"),
    [
        (torch.ones(2, 9, 4), torch.ones(2), (4, 5), None),
        (torch.ones(2, 9, 4), torch.ones(2), (9,), r"slice_sizes is \[9\], must be 2 sizes"),
        (torch.ones(2, 8, 4), torch.ones(2), (4, 5), r"b has shape \[2, 8, 4\], must be \[2, 9, 4\]"),
        (torch.ones(2, 9, 4).half(), torch.ones(2), (4, 5), "b is torch.float16, must be torch.float32"),
        (torch.ones(2, 9, 4), torch.ones(3), (4, 5), r"scales has shape \[3\], must be \[2\]"),
    ],
)
def test_weights_that_do_not_go_together_are_refused(
    b: torch.Tensor, scales: torch.Tensor, sizes: tuple[int, ...], message: str | None
) -> None:
    a = torch.ones(2, 2, 4, 6)
    if message is None:
        assert lora_weights(a, b, scales, sizes).max_slice == 5
        return
    with pytest.raises(KernelError, match=message):
        lora_weights(a, b, scales, sizes)


def test_rows_of_another_width_are_refused() -> None:
    weights = some_weights(2, 24, (40,), 8, torch.float32, "cpu")

    with pytest.raises(KernelError, match=r"x has shape \[3, 20\], must be \[3, 24\]"):
        lora_ref.add_lora(torch.ones(3, 40), torch.ones(3, 20), weights, torch.zeros(3, dtype=torch.int64))


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [7, 4096])
def test_real_sizes_on_a_gpu(num_tokens: int) -> None:
    weights = some_weights(4, 4096, (4096, 1024, 1024), 32, torch.bfloat16, "cuda")
    ids = [[0, NO_ADAPTER, 3, 1, 3][i % 5] for i in range(num_tokens)]

    _, mine, theirs = both(ids, weights)

    assert_close(mine, theirs, TOLERANCE[torch.bfloat16])
