"""Vector code against numpy, on this processor's instructions and without them."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from octavo_kernels import numba_vector
from octavo_kernels.numba_vector import FLOATS, HALVES, Emitter, norm_row, vector_function


def _widen(e: Emitter, source: Any, target: Any) -> None:
    e.store(e.widen(e.load(e.base(source), 0, HALVES, align=2)), e.base(target), 0)


def _narrow(e: Emitter, source: Any, target: Any) -> None:
    e.store(e.narrow(e.load(e.base(source), 0, FLOATS)), e.base(target), 0)


def each_16(function: Any, source: Any, target: Any) -> None:
    """Runs an intrinsic (source, target) over arrays in steps of 16; compiled here, so that a patched flag counts."""

    @numba.njit
    def run(source, target):  # type: ignore[no-untyped-def]
        for i in range(0, source.size, 16):
            function(source.ctypes.data + i * source.itemsize, target.ctypes.data + i * target.itemsize)

    run(source, target)


@pytest.fixture(params=[True, False], ids=["instruction", "bits"])
def halves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the processor's conversion."""
    if request.param and not numba_vector.HAS_HALF:
        pytest.skip("this processor has no conversion to float16")
    monkeypatch.setattr(numba_vector, "HAS_HALF", request.param)


@pytest.mark.usefixtures("halves")
def test_every_float16_widens_to_itself() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    out = np.empty(bits.size, np.float32)

    each_16(vector_function(2, _widen), bits, out)

    np.testing.assert_array_equal(out, bits.view(np.float16).astype(np.float32))


@pytest.mark.usefixtures("halves")
def test_float32_narrows_to_the_nearest_float16() -> None:
    """All exponents, ties, subnormals, what overflows, infinities."""
    rng = np.random.default_rng(0)
    ends = np.array([0.0, -0.0, 65504, 65519.99, 65520, 1e30, np.inf, -np.inf, 6e-8, 2.9e-8, 3e-8, 1e-40], np.float32)
    ties = np.arange(2**10, dtype=np.float32) * 2.0**-11 + 1
    values = np.exp2(rng.uniform(-30, 20, 2**14)) * rng.choice([-1, 1], 2**14)
    source = np.concatenate((ends, ties, values, np.zeros(4))).astype(np.float32)
    out = np.empty(source.size, np.uint16)

    each_16(vector_function(2, _narrow), source, out)

    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, source.astype(np.float16).view(np.uint16))


@pytest.mark.usefixtures("halves")
def test_what_is_not_a_number_stays_so() -> None:
    out = np.empty(16, np.uint16)

    each_16(vector_function(2, _narrow), np.full(16, np.nan, np.float32), out)

    assert np.isnan(out.view(np.float16)).all()


@pytest.mark.parametrize("width", [1, 15, 16, 40, 576])
def test_a_norm_of_any_width_is_the_formulas(width: int) -> None:
    rng = np.random.default_rng(width)
    x, weight = rng.standard_normal((2, width), np.float32)
    eps, out = np.array([1e-5], np.float32), np.full(width, np.nan, np.float32)

    @numba.njit
    def run(x, weight, out, eps):  # type: ignore[no-untyped-def]
        norm_row(x.ctypes.data, weight.ctypes.data, out.ctypes.data, eps.ctypes.data, x.size)

    run(x, weight, out, eps)

    exact = x.astype(np.float64)
    np.testing.assert_allclose(out, exact / np.sqrt((exact**2).mean() + 1e-5) * weight, rtol=1e-6, atol=1e-7)
