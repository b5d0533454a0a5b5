from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from octavo_kernels import silu_and_mul, silu_and_mul_ref, torch_elementwise
from octavo_testing.kernels import assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def some_rows(num_tokens: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(num_tokens, 2 * width, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)


def test_reference_equals_the_formula() -> None:
    x = some_rows(5, 24)

    gate, up = x[:, :24], x[:, 24:]

    assert_close(silu_and_mul_ref.silu_and_mul(x), gate / (1 + torch.exp(-gate)) * up)


# the interpreter computes with numpy, which warns
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_extreme_gates_stay_finite(device: str) -> None:
    x = torch.tensor([[-200.0, 200.0, 2.0, 3.0]], device=device)

    assert_close(silu_and_mul.silu_and_mul(x), torch.tensor([[0.0, 600.0]]))


@pytest.mark.parametrize("implementation", [silu_and_mul, torch_elementwise], ids=["triton", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_tokens", "width"), [(1, 24), (7, 1536), (63, 80)])
def test_silu_and_mul_equals_the_reference(
    implementation: object, dtype: torch.dtype, num_tokens: int, width: int, device: str
) -> None:
    x = some_rows(num_tokens, width, dtype).to(device)

    actual = implementation.silu_and_mul(x)  # type: ignore[attr-defined]

    assert_close(actual, silu_and_mul_ref.silu_and_mul(x))


@pytest.mark.parametrize("implementation", [silu_and_mul, torch_elementwise], ids=["triton", "torch"])
def test_rows_of_a_wider_tensor_are_read_by_their_strides(implementation: object, device: str) -> None:
    wide = some_rows(7, 50).to(device)

    actual = implementation.silu_and_mul(wide[:, 3:83])  # type: ignore[attr-defined]

    assert_close(actual, silu_and_mul_ref.silu_and_mul(wide[:, 3:83].contiguous()))


@pytest.mark.gpu
def test_real_sizes_on_a_gpu() -> None:
    x = some_rows(4096, 14336, torch.bfloat16).cuda()

    assert_close(silu_and_mul.silu_and_mul(x), F.silu(x[:, :14336].float()).mul(x[:, 14336:]).to(torch.bfloat16))
