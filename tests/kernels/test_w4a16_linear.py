"""Weights of 4 and 8 bits on a GPU: how they are packed, and both ways to multiply them against the reference."""

from __future__ import annotations

import pytest
import torch

from octavo_kernels import w4a16_linear, w4a16_linear_ref
from octavo_kernels.errors import KernelError
from octavo_kernels.packed_weight import PackedWeight, pack, unpack
from octavo_kernels.quantized_weight import QuantizedWeight, quantize
from octavo_kernels.split_k import SplitTiling
from octavo_kernels.w4a16_linear import MAX_ROWS, w4a16_tiling
from octavo_testing.kernels import TOLERANCE, assert_close

WHOLE = SplitTiling(block_n=16, block_k=64, splits=1, num_warps=4, num_stages=2)
SPLIT = SplitTiling(block_n=32, block_k=64, splits=2, num_warps=4, num_stages=2)
TILINGS = pytest.mark.parametrize("tiling", [WHOLE, SPLIT], ids=["whole", "split"])
BITS = pytest.mark.parametrize("bits", [4, 8])
DEPTH = 160
LIMITS = {**TOLERANCE, torch.float32: 5e-5, torch.bfloat16: 0.1}
"""The interpreter cuts bfloat16 off where it should round, or does not round at all: weights are a part in 128 away."""


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def codes(
    bits: int, num_columns: int = 37, depth: int = DEPTH, group: int = 32, *, centred: bool = False
) -> QuantizedWeight:
    """As a checkpoint stores them: any codes, a scale and a minimum for each group."""
    generator = torch.Generator().manual_seed(bits)
    scales = (torch.rand(num_columns, depth // group, generator=generator) + 0.1) * 1.6 / 2**bits
    minima = -(2 ** (bits - 1)) * scales if centred else random(5, *scales.shape) * 0.1 - 0.8
    values = torch.randint(0, 2**bits, (num_columns, depth), generator=generator, dtype=torch.uint8)
    return QuantizedWeight(bits=bits, codes=values, scales=scales.half().float(), minima=minima.half().float())


def a_case(
    num_rows: int, bits: int, dtype: torch.dtype = torch.float32, device: str = "cpu", group: int = 32
) -> tuple[torch.Tensor, PackedWeight, torch.Tensor]:
    """x, weight, bias."""
    depth = 3 * group if group > 32 else DEPTH
    weight = pack(codes(bits, depth=depth, group=group), torch.device(device))
    return random(1, num_rows, depth).to(device, dtype), weight, random(3, 37).to(device, dtype)


@BITS
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("centred", [False, True])
def test_packing_loses_nothing_that_float16_holds(bits: int, group: int, centred: bool) -> None:
    weight = codes(bits, depth=2 * group, group=group, centred=centred)

    packed = pack(weight, torch.device("cpu"))

    assert (packed.in_features, packed.out_features, packed.group) == (2 * group, 37, group)
    assert torch.equal(unpack(packed), weight.dequantize())


@BITS
def test_what_was_rounded_to_few_bits_is_packed_without_further_loss(bits: int) -> None:
    weight = quantize(random(1, 8, 64) * 1e-4, bits)

    assert_close(unpack(pack(weight, torch.device("cpu"))), weight.dequantize(), 1e-9)


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e6, 1e30])
def test_scales_of_any_size_stay_exact(size: float) -> None:
    """Float16 alone ends at 65,504 and rounds below 6e-5."""
    weight = quantize(random(1, 8, 64) * size, 4)

    unpacked = unpack(pack(weight, torch.device("cpu")))

    torch.testing.assert_close(unpacked, weight.dequantize(), rtol=1e-5, atol=1e-5 * size)


def test_packed_bytes_are_half_a_byte_a_number_and_four_a_group() -> None:
    assert pack(codes(4), torch.device("cpu")).num_bytes == 37 * (DEPTH // 2 + 4 * DEPTH // 32)
    assert pack(codes(8), torch.device("cpu")).num_bytes == 37 * (DEPTH + 4 * DEPTH // 32)


@BITS
@TILINGS
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_rows", [1, 17])
def test_few_rows_equal_the_reference(
    num_rows: int, dtype: torch.dtype, tiling: SplitTiling, bits: int, device: str
) -> None:
    """Columns are no multiple of a block, five chunks none of a step of two."""
    x, weight, bias = a_case(num_rows, bits, dtype, device)

    out = w4a16_linear.w4a16_linear(x, weight, bias, tiling)

    assert_close(out, w4a16_linear_ref.w4a16_linear(x, weight, bias), LIMITS[dtype])


@pytest.mark.parametrize("group", [64, 128])
def test_larger_groups_equal_the_reference(group: int, device: str) -> None:
    x, weight, bias = a_case(3, 4, device=device, group=group)

    assert_close(
        w4a16_linear.w4a16_linear(x, weight, bias, SPLIT), w4a16_linear_ref.w4a16_linear(x, weight, bias), 5e-5
    )
    x = x.repeat(43, 1)
    assert_close(
        w4a16_linear.w4a16_linear(x, weight, bias, SPLIT), w4a16_linear_ref.w4a16_linear(x, weight, bias), 5e-5
    )


@BITS
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_many_rows_equal_the_reference_whole_or_in_parts(
    dtype: torch.dtype, bits: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, bias = a_case(MAX_ROWS + 1, bits, dtype, device)

    whole = w4a16_linear.w4a16_linear(x, weight, bias, WHOLE)
    # 64 of its 100 rows at a time
    monkeypatch.setattr(w4a16_linear, "WORKSPACE_BYTES", 1)
    weight = pack(codes(bits, num_columns=100), torch.device(device))
    parts = w4a16_linear.w4a16_linear(x, weight, None, WHOLE)

    first = pack(codes(bits), torch.device(device))
    assert_close(whole, w4a16_linear_ref.w4a16_linear(x, first, bias), LIMITS[dtype])
    assert_close(parts, w4a16_linear_ref.w4a16_linear(x, weight, None), LIMITS[dtype])


@BITS
@TILINGS
def test_a_rows_bits_do_not_depend_on_what_stands_beside_it(tiling: SplitTiling, bits: int, device: str) -> None:
    x, weight, bias = a_case(17, bits, device=device)

    together = w4a16_linear.w4a16_linear(x, weight, bias, tiling)

    alone = [w4a16_linear.w4a16_linear(x[i : i + 1], weight, bias, tiling) for i in (0, 5, 16)]
    assert torch.equal(torch.cat(alone), together[[0, 5, 16]])


def test_rows_of_several_tiles_are_all_computed(device: str) -> None:
    x, weight, _ = a_case(100, 4, device=device)

    assert_close(
        w4a16_linear.w4a16_linear(x, weight, None, WHOLE), w4a16_linear_ref.w4a16_linear(x, weight, None), 5e-5
    )


def test_rows_are_read_by_their_stride(device: str) -> None:
    x, weight, bias = a_case(4, 4, device=device)
    wide = torch.full((4, 200), torch.nan, device=device)
    wide[:, 7 : 7 + DEPTH] = x

    out = w4a16_linear.w4a16_linear(wide[:, 7 : 7 + DEPTH], weight, bias, SPLIT)

    assert_close(out, w4a16_linear_ref.w4a16_linear(x, weight, bias), 5e-5)


def test_no_rows_give_none(device: str) -> None:
    x, weight, bias = a_case(0, 4, device=device)

    assert w4a16_linear.w4a16_linear(x, weight, bias, SPLIT).shape == (0, 37)


def test_what_does_not_fit_is_refused(device: str) -> None:
    x, weight, bias = a_case(2, 4, device=device)

    with pytest.raises(KernelError, match=r"x has shape \[2, 128\], must be \[any, 160\]"):
        w4a16_linear.w4a16_linear(x[:, :128], weight, bias, WHOLE)
    with pytest.raises(KernelError, match=r"bias is torch\.float16, must be torch\.float32"):
        w4a16_linear.w4a16_linear(x, weight, bias.half(), WHOLE)
    with pytest.raises(KernelError, match=r"scales is \[37, 2\], must be \[37, 5\]"):
        QuantizedWeight(bits=4, codes=codes(4).codes, scales=torch.zeros(37, 2), minima=torch.zeros(37, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 16, 100, 1000])
@BITS
def test_real_sizes_on_a_gpu(num_rows: int, bits: int) -> None:
    x = random(1, num_rows, 14336).to("cuda", torch.bfloat16)
    weight = pack(quantize(random(2, 4096, 14336) * 0.02, bits), torch.device("cuda"))
    tiling = w4a16_tiling(4096, 14336, bits, x.dtype, torch.cuda.get_device_properties(0).multi_processor_count)

    out = w4a16_linear.w4a16_linear(x, weight, None, tiling)

    assert_close(out, w4a16_linear_ref.w4a16_linear(x, weight, None), 3e-2)
