"""The linear layer whose rows keep their bits: against its reference, and against itself among other rows."""

from __future__ import annotations

import pytest
import torch

from octavo_kernels import invariant_linear, invariant_linear_ref
from octavo_kernels.torch_linear import INVARIANT_ROWS, invariant, select_linear
from octavo_testing.kernels import TOLERANCE, assert_close

DEPTH, COLUMNS = 83, 37


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_case(num_rows: int, dtype: torch.dtype, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight, bias; no size is a multiple of a tile."""
    x, weight = random(1, num_rows, DEPTH), random(2, COLUMNS, DEPTH) * 0.2
    return x.to(device, dtype), weight.to(device, dtype), random(3, COLUMNS).to(device, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_rows", [1, 5, 70])
def test_it_equals_the_reference(num_rows: int, dtype: torch.dtype, device: str) -> None:
    x, weight, bias = a_case(num_rows, dtype, device)

    tolerance = 2e-5 if dtype == torch.float32 else TOLERANCE[dtype]
    for given in (bias, None):
        expected = invariant_linear_ref.invariant_linear(x, weight, given)
        assert_close(invariant_linear.invariant_linear(x, weight, given), expected, tolerance)


def test_the_reference_is_torchs_linear_layer() -> None:
    x, weight, bias = a_case(5, torch.float32)

    expected = torch.nn.functional.linear(x, weight, bias)

    assert_close(invariant_linear_ref.invariant_linear(x, weight, bias), expected, 1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_rows_bits_do_not_depend_on_what_stands_beside_it_nor_on_where_it_stands(
    dtype: torch.dtype, device: str
) -> None:
    x, weight, bias = a_case(70, dtype, device)

    together = invariant_linear.invariant_linear(x, weight, bias)

    for row in (0, 1, 31, 63, 69):
        alone = invariant_linear.invariant_linear(x[row : row + 1], weight, bias)
        assert torch.equal(alone, together[row : row + 1])
    assert torch.equal(invariant_linear.invariant_linear(x.flip(0), weight, bias).flip(0), together)


def test_a_row_of_no_numbers_stays_alone(device: str) -> None:
    x, weight, bias = a_case(4, torch.float32, device)
    x[2, 5] = torch.nan

    out = invariant_linear.invariant_linear(x, weight, bias)

    assert out.isnan().all(dim=1).tolist() == out.isnan().any(dim=1).tolist() == [False, False, True, False]


def test_no_rows_give_no_rows(device: str) -> None:
    _, weight, bias = a_case(1, torch.float32, device)

    assert invariant_linear.invariant_linear(weight[:0], weight, bias).shape == (0, COLUMNS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_rows", [1, 3, INVARIANT_ROWS, INVARIANT_ROWS + 1, 5 * INVARIANT_ROWS])
def test_torchs_in_chunks_of_one_size_keeps_a_rows_bits_too(num_rows: int, dtype: torch.dtype) -> None:
    x, weight, bias = random(1, 80, 896).to(dtype), random(2, 1000, 896).to(dtype), random(3, 1000).to(dtype)
    linear = invariant(select_linear())
    together = linear(x, weight, bias)

    assert torch.equal(linear(x[7 : 7 + num_rows], weight, bias), together[7 : 7 + num_rows])
    # Its sums come to a hundred, and bfloat16 keeps eight bits.
    assert_close(together, torch.nn.functional.linear(x, weight, bias), 1e-4 if dtype == torch.float32 else 0.05)
