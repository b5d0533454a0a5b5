"""Vector code against numpy, on this processor's instructions and without them."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from octavo_kernels import numba_vector
from octavo_kernels.numba_vector import (
    FLOATS,
    HALVES,
    Emitter,
    norm_and_quantize,
    norm_row,
    quantize_group,
    silu_and_quantize,
    vector_function,
)


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


def quantized(values: NDArray[np.float32]) -> tuple[list[int], float, float, int]:
    """Of 32 values: the codes, their scale, scale * sum and -128 * sum."""
    scale = np.float32(np.abs(values).max() / np.float32(127.0))
    inverse = np.float32(127.0) / np.abs(values).max() if scale else np.float32(0.0)
    codes = np.rint(values * inverse).astype(np.int64)
    return codes.tolist(), float(scale), float(scale * np.float32(codes.sum())), int(-128 * codes.sum())


def read(codes: NDArray[np.int8], scales: NDArray[np.float32]) -> list[tuple[list[int], float, float, int]]:
    sums = scales.view(np.int32)[:, 2]
    return [(row.tolist(), float(s[0]), float(s[1]), int(n)) for row, s, n in zip(codes, scales, sums, strict=True)]


@pytest.mark.parametrize("values", [np.linspace(-3, 5, 32), np.zeros(32), np.full(32, -1e-30)])
def test_a_group_is_its_codes_scale_and_sums(values: NDArray[np.float64]) -> None:
    x, codes, scales = values.astype(np.float32), np.full((1, 32), 99, np.int8), np.full((1, 3), np.nan, np.float32)

    @numba.njit
    def run(x, codes, scales):  # type: ignore[no-untyped-def]
        quantize_group(x.ctypes.data, codes.ctypes.data, scales.ctypes.data)

    run(x, codes, scales)

    assert read(codes, scales) == [quantized(x)]


def test_a_normed_row_is_quantised_as_it_would_be_alone() -> None:
    rng = np.random.default_rng(3)
    x, weight = rng.standard_normal((2, 96), np.float32)
    eps, normed = np.array([1e-5], np.float32), np.empty(96, np.float32)
    codes, scales = np.full((3, 32), 99, np.int8), np.full((3, 3), np.nan, np.float32)

    @numba.njit
    def run(x, weight, normed, codes, scales, eps):  # type: ignore[no-untyped-def]
        norm_row(x.ctypes.data, weight.ctypes.data, normed.ctypes.data, eps.ctypes.data, x.size)
        norm_and_quantize(
            x.ctypes.data, weight.ctypes.data, codes.ctypes.data, scales.ctypes.data, eps.ctypes.data, x.size // 32
        )

    run(x, weight, normed, codes, scales, eps)

    assert read(codes, scales) == [quantized(group) for group in normed.reshape(3, 32)]


@pytest.mark.parametrize("extremes", [(), (-200.0, 200.0, 0.0)])
@pytest.mark.parametrize("seed", range(8))
def test_silu_of_the_gate_times_up_is_quantised(seed: int, extremes: tuple[float, ...]) -> None:
    rng = np.random.default_rng(seed)
    gate, up = rng.standard_normal((2, 32), np.float32) * 4
    gate[: len(extremes)] = extremes
    codes, scales = np.full((1, 32), 99, np.int8), np.full((1, 3), np.nan, np.float32)

    @numba.njit
    def run(gate, up, codes, scales):  # type: ignore[no-untyped-def]
        silu_and_quantize(gate.ctypes.data, up.ctypes.data, codes.ctypes.data, scales.ctypes.data)

    run(gate, up, codes, scales)

    exact = gate / (1 + np.exp(-gate.astype(np.float64))) * up
    assert scales[0, 0] == pytest.approx(np.abs(exact).max() / 127, rel=1e-6)
    np.testing.assert_allclose(codes[0] * scales[0, 0], exact, atol=0.51 * scales[0, 0])
