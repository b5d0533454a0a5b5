"""Linear layers on a CPU: right by each way, and oneDNN compiles for a few numbers of rows alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from octavo_kernels import torch_linear
from octavo_kernels.torch_linear import SIZES, select_linear


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_rows", [0, 1, 2, 4, 5, 8, 33, 256, 257, 600])
def test_a_float32_linear_is_right_by_each_way(
    num_rows: int, bias: bool, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against float64; rows cut out of a wider tensor, as q, k and v are."""
    if not onednn:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    torch.manual_seed(1)
    x, weight, offset = torch.randn(num_rows, 96)[:, 48:], torch.randn(33, 48), torch.randn(33)
    linear = select_linear()

    out = linear(x, weight, offset if bias else None)

    expected = x.double() @ weight.double().T + (offset.double() if bias else 0)
    assert (linear is torch.nn.functional.linear) == (not onednn)
    assert out.shape == (num_rows, 33)
    assert out.is_contiguous()
    torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=1e-5)


def test_onednn_is_given_a_few_numbers_of_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps compiled code for each that it was ever given."""
    given: set[int] = set()
    pointwise = torch.ops.mkldnn._linear_pointwise

    def recorded(x: torch.Tensor, *rest: Any) -> Any:
        given.add(x.shape[0])
        return pointwise(x, *rest)

    fake = SimpleNamespace(_linear_pointwise=recorded)
    monkeypatch.setattr(torch_linear.torch.ops, "mkldnn", fake, raising=False)
    linear, weight = select_linear(), torch.randn(7, 5)

    for num_rows in range(600):
        assert linear(torch.randn(num_rows, 5), weight, None).shape == (num_rows, 7)

    assert given == set(SIZES)


def test_another_dtype_is_left_to_torch() -> None:
    x, weight = torch.randn(9, 16).bfloat16(), torch.randn(5, 16).bfloat16()

    assert torch.equal(select_linear()(x, weight, None), torch.nn.functional.linear(x, weight))
