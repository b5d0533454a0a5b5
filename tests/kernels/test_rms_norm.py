from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from octavo_kernels import rms_norm, rms_norm_ref, torch_elementwise
from octavo_testing.kernels import assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def a_tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_reference_equals_torchs_own() -> None:
    x, weight = a_tensor(7, 576), a_tensor(576, seed=1)

    assert_close(rms_norm_ref.rms_norm(x, weight, 1e-5), F.rms_norm(x, (576,), weight, 1e-5))


def test_reference_adds_before_it_norms_and_leaves_the_sum_in_the_residual() -> None:
    x, residual, weight = a_tensor(3, 8), a_tensor(3, 8, seed=1), a_tensor(8, seed=2)
    total = x + residual

    normed = rms_norm_ref.add_rms_norm(x, residual, weight, 1e-5)

    assert torch.equal(residual, total)
    assert_close(normed, F.rms_norm(total, (8,), weight, 1e-5))


def test_epsilon_keeps_a_row_of_zeros_finite() -> None:
    assert torch.equal(rms_norm_ref.rms_norm(torch.zeros(1, 4), torch.ones(4), 1e-6), torch.zeros(1, 4))


@pytest.mark.parametrize("implementation", [rms_norm, torch_elementwise], ids=["triton", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 24), (7, 80), (63, 576), (5, 3, 24), (33,)], ids=str)
def test_rms_norm_equals_the_reference(
    implementation: object, dtype: torch.dtype, shape: tuple[int, ...], device: str
) -> None:
    x, weight = a_tensor(*shape, dtype=dtype).to(device), a_tensor(shape[-1], seed=1, dtype=dtype).to(device)

    actual = implementation.rms_norm(x, weight, 1e-5)  # type: ignore[attr-defined]

    assert_close(actual, rms_norm_ref.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("implementation", [rms_norm, torch_elementwise], ids=["triton", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 24), (7, 80), (63, 576)], ids=str)
def test_add_rms_norm_equals_the_reference(
    implementation: object, dtype: torch.dtype, shape: tuple[int, int], device: str
) -> None:
    x, weight = a_tensor(*shape, dtype=dtype).to(device), a_tensor(shape[1], seed=1, dtype=dtype).to(device)
    residual = a_tensor(*shape, seed=2, dtype=dtype).to(device)
    expected_residual = residual.clone()
    expected = rms_norm_ref.add_rms_norm(x, expected_residual, weight, 1e-5)

    actual = implementation.add_rms_norm(x, residual, weight, 1e-5)  # type: ignore[attr-defined]

    assert_close(actual, expected)
    assert_close(residual, expected_residual)


@pytest.mark.parametrize("implementation", [rms_norm, torch_elementwise], ids=["triton", "torch"])
def test_rows_of_a_wider_tensor_are_read_by_their_strides(implementation: object, device: str) -> None:
    wide = a_tensor(5, 100).to(device)
    heads = wide[:, 10:58].view(5, 2, 24)
    weight = a_tensor(24, seed=1).to(device)

    actual = implementation.rms_norm(heads, weight, 1e-5)  # type: ignore[attr-defined]

    assert_close(actual, rms_norm_ref.rms_norm(heads.contiguous(), weight, 1e-5))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_real_sizes_on_a_gpu(dtype: torch.dtype) -> None:
    x, weight = a_tensor(4096, 8192, dtype=dtype).cuda(), a_tensor(8192, seed=1, dtype=dtype).cuda()

    assert_close(rms_norm.rms_norm(x, weight, 1e-5), rms_norm_ref.rms_norm(x, weight, 1e-5))
