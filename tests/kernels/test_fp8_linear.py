"""Linear layers in float8: how rows are rounded, and both ways to multiply them against the reference."""

from __future__ import annotations

import pytest
import torch

from octavo_kernels import fp8_linear, fp8_linear_ref, fp8_weight
from octavo_kernels.errors import KernelError
from octavo_kernels.fp8_weight import FP8, Fp8Weight, check_fp8_device, quantize_fp8
from octavo_kernels.skinny_linear import default_tiling
from octavo_kernels.split_k import SplitTiling
from octavo_testing.kernels import assert_close

WHOLE = SplitTiling(block_n=16, block_k=32, splits=1, num_warps=4, num_stages=2)
SPLIT = SplitTiling(block_n=32, block_k=16, splits=3, num_warps=4, num_stages=2)
WAYS = pytest.mark.parametrize("tiling", [WHOLE, SPLIT, None], ids=["whole", "split", "vendor"])
LIMIT = 1.6e-2
"""One rounding to bfloat16; the products themselves are the same."""


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_case(num_rows: int, device: str = "cpu") -> tuple[torch.Tensor, Fp8Weight, torch.Tensor]:
    """x, weight, bias; rows and outputs of very different sizes."""
    x = random(1, num_rows, 112) * 10.0 ** (torch.arange(num_rows).unsqueeze(1) % 5 - 2)
    weight = quantize_fp8((random(2, 48, 112) * 0.1 * 2.0 ** (torch.arange(48).unsqueeze(1) % 7)).to(device))
    return x.to(device, torch.bfloat16), weight, random(3, 48).to(device, torch.bfloat16)


def test_a_weight_is_rounded_within_half_a_step_of_its_outputs_largest() -> None:
    weight = random(1, 16, 32) * 10.0 ** (torch.arange(16).unsqueeze(1) - 8)

    rounded = quantize_fp8(weight)

    numbers = rounded.codes.float() * rounded.scales.unsqueeze(1)
    # three bits of mantissa, and below 2^-6 of the code's range steps of 2^-9
    limit = weight.abs() / 16 + rounded.scales.unsqueeze(1) * 2**-10
    assert bool(((numbers - weight).abs() <= limit * 1.0001).all())
    assert_close(rounded.codes.float().abs().amax(dim=1), torch.full((16,), 448.0))


@pytest.mark.parametrize("width", [1, 112, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rows_are_rounded_as_by_the_reference(width: int, dtype: torch.dtype, device: str) -> None:
    x = random(1, 5, width).to(device, dtype)
    x[3] = 0

    codes, scales = fp8_linear.quantize_rows(x)

    expected_codes, expected_scales = fp8_weight.quantize_rows(x)
    assert codes.dtype == FP8
    assert_close(scales, expected_scales)
    # where a division lands on the other side of a tie, a step of three bits of mantissa
    assert_close(codes.float(), expected_codes.float(), 0.126)
    assert float((codes.float() != expected_codes.float()).float().mean()) < 0.01


@WAYS
@pytest.mark.parametrize("num_rows", [1, 7, 16, 40])
def test_products_equal_the_reference(num_rows: int, tiling: SplitTiling | None, device: str) -> None:
    x, weight, bias = a_case(num_rows, device)

    out = fp8_linear.fp8_linear(x, weight, bias, tiling)

    assert_close(out, fp8_linear_ref.fp8_linear(x, weight, bias), LIMIT)
    assert_close(fp8_linear.fp8_linear(x, weight, None, tiling), fp8_linear_ref.fp8_linear(x, weight, None), LIMIT)


def test_the_reference_is_near_the_exact_product() -> None:
    x, weight, bias = a_case(9)
    exact = x.float() @ (weight.codes.float() * weight.scales.unsqueeze(1)).t()

    out = fp8_linear_ref.fp8_linear(x, weight, torch.zeros_like(bias)).float()

    assert 0 < float(((out - exact).std(dim=1) / exact.std(dim=1)).max()) < 0.05


@pytest.mark.parametrize("tiling", [WHOLE, SPLIT], ids=["whole", "split"])
def test_a_rows_bits_do_not_depend_on_what_stands_beside_it(tiling: SplitTiling, device: str) -> None:
    x, weight, bias = a_case(16, device)

    together = fp8_linear.fp8_linear(x, weight, bias, tiling)

    alone = [fp8_linear.fp8_linear(x[i : i + 1], weight, bias, tiling) for i in (0, 5, 15)]
    assert torch.equal(torch.cat(alone), together[[0, 5, 15]])


# the interpreter computes with numpy, which warns
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_row_of_no_numbers_stays_alone_and_is_seen(device: str) -> None:
    x, weight, bias = a_case(4, device)
    x[2, 5] = torch.nan

    out = fp8_linear.fp8_linear(x, weight, bias, SPLIT)

    assert out.isnan().all(dim=1).tolist() == out.isnan().any(dim=1).tolist() == [False, False, True, False]


def test_rows_are_read_by_their_stride_and_none_give_none(device: str) -> None:
    x, weight, bias = a_case(4, device)
    wide = torch.full((4, 200), torch.nan, device=device, dtype=torch.bfloat16)
    wide[:, 7 : 7 + 112] = x

    out = fp8_linear.fp8_linear(wide[:, 7 : 7 + 112], weight, bias, SPLIT)

    assert_close(out, fp8_linear_ref.fp8_linear(x, weight, bias), LIMIT)
    assert fp8_linear.fp8_linear(x[:0], weight, bias, SPLIT).shape == (0, 48)


@pytest.mark.parametrize("shape", [(40, 32), (32, 40)])
def test_other_widths_are_refused_with_both_numbers_and_what_to_do(shape: tuple[int, int]) -> None:
    message = f"{shape[0]} outputs and {shape[1]} inputs; both must be multiples of 16, keep it in its dtype"

    with pytest.raises(KernelError, match=message):
        quantize_fp8(torch.zeros(shape))


def test_other_dtypes_are_refused(device: str) -> None:
    x, weight, bias = a_case(2, device)

    with pytest.raises(KernelError, match=r"x is torch\.float16, must be torch\.bfloat16"):
        fp8_linear.fp8_linear(x.half(), weight, bias, WHOLE)
    with pytest.raises(KernelError, match=r"bias is torch\.float32, must be torch\.bfloat16"):
        fp8_linear.fp8_linear(x, weight, bias.float(), WHOLE)


@pytest.mark.parametrize(
    ("capability", "message"),
    [
        ((8, 0), "8.9 or newer .*, A100 has 8.0; use int8"),
        (None, "8.9 or newer .*, A100 is none of NVIDIA's; use int8"),
    ],
)
def test_gpus_without_float8_are_refused(capability: tuple[int, int] | None, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        check_fp8_device("A100", capability)


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (12, 0)])
def test_gpus_with_float8_are_taken(capability: tuple[int, int]) -> None:
    check_fp8_device("a GPU", capability)


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 16, 1000])
def test_real_sizes_on_a_gpu(num_rows: int) -> None:
    x = random(1, num_rows, 14336).to("cuda", torch.bfloat16)
    weight = quantize_fp8((random(2, 4096, 14336) * 0.02).cuda())
    processors = torch.cuda.get_device_properties(0).multi_processor_count

    for tiling in (None, default_tiling(4096, 14336, FP8, processors)):
        assert_close(fp8_linear.fp8_linear(x, weight, None, tiling), fp8_linear_ref.fp8_linear(x, weight, None), 3e-2)
