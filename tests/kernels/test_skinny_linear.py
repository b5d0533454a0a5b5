"""Linear layers of few rows: the split product against its reference, its bits whatever stands beside a row."""

from __future__ import annotations

import pytest
import torch

from octavo_kernels import skinny_linear, skinny_linear_ref
from octavo_kernels.errors import KernelError
from octavo_kernels.skinny_linear import default_tiling
from octavo_kernels.split_k import MAX_SPLITS, SplitTiling, num_splits
from octavo_testing.kernels import TOLERANCE, assert_close

WHOLE = SplitTiling(block_n=16, block_k=32, splits=1, num_warps=4, num_stages=2)
SPLIT = SplitTiling(block_n=32, block_k=16, splits=3, num_warps=4, num_stages=2)
TILINGS = pytest.mark.parametrize("tiling", [WHOLE, SPLIT], ids=["whole", "split"])


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_case(
    num_rows: int, num_columns: int, depth: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight, bias."""
    x, weight = random(1, num_rows, depth), random(2, num_columns, depth) * 0.2
    return x.to(device, dtype), weight.to(device, dtype), random(3, num_columns).to(device, dtype)


@TILINGS
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_rows", [1, 7, 16])
def test_few_rows_equal_the_reference(num_rows: int, dtype: torch.dtype, tiling: SplitTiling, device: str) -> None:
    """Neither columns nor the sum are a multiple of a block; the last split is shorter than the others."""
    x, weight, bias = a_case(num_rows, 37, 83, dtype, device)

    out = skinny_linear.skinny_linear(x, weight, bias, tiling)

    tolerance = 2e-5 if dtype == torch.float32 else TOLERANCE[dtype]
    assert_close(out, skinny_linear_ref.skinny_linear(x, weight, bias), tolerance)
    assert_close(
        skinny_linear.skinny_linear(x, weight, None, tiling),
        skinny_linear_ref.skinny_linear(x, weight, None),
        tolerance,
    )


def test_the_reference_is_torchs_linear_layer() -> None:
    x, weight, bias = a_case(5, 37, 83)

    assert_close(skinny_linear_ref.skinny_linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias), 1e-5)


@TILINGS
def test_a_rows_bits_do_not_depend_on_what_stands_beside_it(tiling: SplitTiling, device: str) -> None:
    x, weight, bias = a_case(16, 37, 83, device=device)

    together = skinny_linear.skinny_linear(x, weight, bias, tiling)

    alone = [skinny_linear.skinny_linear(x[i : i + 1], weight, bias, tiling) for i in range(16)]
    assert torch.equal(torch.cat(alone), together)
    assert torch.equal(skinny_linear.skinny_linear(x.flip(0), weight, bias, tiling).flip(0), together)


@TILINGS
def test_a_row_of_no_numbers_stays_alone(tiling: SplitTiling, device: str) -> None:
    x, weight, bias = a_case(4, 37, 83, device=device)
    x[2, 5] = torch.nan

    out = skinny_linear.skinny_linear(x, weight, bias, tiling)

    assert out.isnan().all(dim=1).tolist() == out.isnan().any(dim=1).tolist() == [False, False, True, False]


def test_rows_are_read_by_their_stride(device: str) -> None:
    x, weight, bias = a_case(4, 37, 83, device=device)
    wide = torch.full((4, 100), torch.nan, device=device)
    wide[:, 7:90] = x

    assert_close(
        skinny_linear.skinny_linear(wide[:, 7:90], weight, bias, SPLIT),
        skinny_linear_ref.skinny_linear(x, weight, bias),
        2e-5,
    )


def test_no_rows_give_none(device: str) -> None:
    x, weight, bias = a_case(0, 37, 83, device=device)

    assert skinny_linear.skinny_linear(x, weight, bias, SPLIT).shape == (0, 37)


def test_more_rows_than_the_kernel_takes_are_refused_with_what_to_use(device: str) -> None:
    with pytest.raises(KernelError, match="x has 17 rows, the kernel for few takes 16; use the vendor's product"):
        skinny_linear.skinny_linear(*a_case(17, 8, 8, device=device), WHOLE)


def test_a_weight_that_is_not_contiguous_is_refused(device: str) -> None:
    x, weight, _ = a_case(2, 8, 16, device=device)

    with pytest.raises(KernelError, match=r"weight has strides \(1, 8\), must be contiguous"):
        skinny_linear.skinny_linear(x, weight.t().contiguous().t(), None, WHOLE)
    with pytest.raises(KernelError, match=r"x has strides \(1, 2\), must be contiguous"):
        skinny_linear.skinny_linear(x.t().contiguous().t(), weight, None, WHOLE)


@pytest.mark.parametrize(
    ("num_columns", "num_steps", "expected"),
    [
        # 448 blocks of columns are more than twice 132 processors
        (28672, 32, 1),
        # 64 blocks of columns: 5 splits of 23 of its 112 steps would do
        (4096, 112, 5),
        # 4 steps a split at least
        (64, 20, 5),
        (64, 3, 1),
        (64, 10_000, MAX_SPLITS),
    ],
)
def test_splits_fill_the_device_and_none_is_short(num_columns: int, num_steps: int, expected: int) -> None:
    assert num_splits(num_columns, num_steps, 64, 132) == expected


def test_no_split_is_empty() -> None:
    for num_steps in range(1, 200):
        for num_columns in (64, 640, 6400):
            splits = num_splits(num_columns, num_steps, 64, 132)
            steps_each = -(-num_steps // splits)
            assert (splits - 1) * steps_each < num_steps <= splits * steps_each


@pytest.mark.gpu
@pytest.mark.parametrize(("num_columns", "depth"), [(28672, 4096), (4096, 14336), (6144, 4096), (517, 200)])
def test_real_sizes_on_a_gpu(num_columns: int, depth: int) -> None:
    x, weight, bias = a_case(5, num_columns, depth, torch.bfloat16, "cuda")
    processors = torch.cuda.get_device_properties(0).multi_processor_count

    out = skinny_linear.skinny_linear(x, weight, bias, default_tiling(num_columns, depth, torch.bfloat16, processors))

    assert_close(out, skinny_linear_ref.skinny_linear(x, weight, bias), 3e-2)
