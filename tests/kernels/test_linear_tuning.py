"""What decides which way a linear layer of few rows takes, and how it is remembered."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from octavo_kernels import skinny_linear_ref
from octavo_kernels.linear_tuning import FewRows, LinearShape, TuningCache, cache_folder, choose
from octavo_kernels.split_k import SplitTiling
from octavo_kernels.triton_backend import TritonBackend
from octavo_kernels.triton_linear import LinearShapes, TritonLinear
from octavo_testing.kernels import assert_close

FIRST = SplitTiling(block_n=64, block_k=128, splits=1, num_warps=4, num_stages=4)
SECOND = SplitTiling(block_n=32, block_k=128, splits=2, num_warps=4, num_stages=6)
SHAPE = LinearShape(out_features=4096, in_features=14336, dtype="bfloat16")
VERSIONS = {"torch": "2.9", "triton": "3.5"}


@pytest.mark.parametrize(
    ("vendor", "first", "second", "expected"),
    [
        (10.0, 8.0, 7.0, SECOND),
        (10.0, 7.0, 8.0, FIRST),
        (10.0, 7.0, 7.0, FIRST),
        (10.0, 9.9, 9.8, SECOND),
        (10.0, 10.0, 10.0, None),
        (10.0, 12.0, 11.0, None),
        # one that cannot be run
        (10.0, math.inf, 8.0, SECOND),
        (10.0, math.inf, math.inf, None),
    ],
)
def test_the_fastest_is_chosen_and_of_equals_the_vendors(
    vendor: float, first: float, second: float, expected: SplitTiling | None
) -> None:
    times = {None: vendor, FIRST: first, SECOND: second}

    assert choose([FIRST, SECOND], times.__getitem__) == expected


def test_each_way_is_measured_once() -> None:
    asked: list[SplitTiling | None] = []

    def seconds(way: SplitTiling | None) -> float:
        asked.append(way)
        return 1.0

    choose([FIRST, SECOND], seconds)

    assert asked == [None, FIRST, SECOND]


def test_choices_are_read_again_by_the_next_start(tmp_path: Path) -> None:
    other = LinearShape(out_features=64, in_features=32, dtype="bfloat16")
    TuningCache(tmp_path, "NVIDIA H100", VERSIONS).keep({SHAPE: FIRST, other: None})

    found = TuningCache(tmp_path, "NVIDIA H100", VERSIONS)

    assert (found.get(SHAPE), found.get(other)) == (FIRST, None)
    assert found.has(SHAPE)
    assert found.has(other)
    assert not found.has(LinearShape(out_features=4096, in_features=14336, dtype="float16"))


@pytest.mark.parametrize(
    ("device", "versions"), [("NVIDIA H200", VERSIONS), ("NVIDIA H100", {**VERSIONS, "triton": "4"})]
)
def test_another_device_or_version_measures_anew(tmp_path: Path, device: str, versions: dict[str, str]) -> None:
    TuningCache(tmp_path, "NVIDIA H100", VERSIONS).keep({SHAPE: FIRST})

    assert not TuningCache(tmp_path, device, versions).has(SHAPE)


def test_devices_whose_names_make_one_file_do_not_mix(tmp_path: Path) -> None:
    TuningCache(tmp_path, "H100 A", VERSIONS).keep({SHAPE: FIRST})

    assert not TuningCache(tmp_path, "H100-A", VERSIONS).has(SHAPE)


def test_what_another_process_kept_meanwhile_stays(tmp_path: Path) -> None:
    mine, theirs = (TuningCache(tmp_path, "NVIDIA H100", VERSIONS) for _ in range(2))
    other = LinearShape(out_features=64, in_features=32, dtype="bfloat16")
    theirs.keep({other: SECOND})

    mine.keep({SHAPE: FIRST})

    found = TuningCache(tmp_path, "NVIDIA H100", VERSIONS)
    assert (found.get(SHAPE), found.get(other)) == (FIRST, SECOND)


@pytest.mark.parametrize("text", ["", "[]", '{"about": 1}', '{"choices": {"a": 3}}', "{"])
def test_a_damaged_file_is_as_none(tmp_path: Path, text: str) -> None:
    cache = TuningCache(tmp_path, "NVIDIA H100", VERSIONS)
    cache.keep({SHAPE: FIRST})
    cache.path.write_text(text)

    assert not TuningCache(tmp_path, "NVIDIA H100", VERSIONS).has(SHAPE)


def test_a_choice_that_this_version_does_not_know_is_as_none(tmp_path: Path) -> None:
    cache = TuningCache(tmp_path, "NVIDIA H100", VERSIONS)
    cache.keep({SHAPE: FIRST})
    cache.path.write_text(cache.path.read_text().replace("num_stages", "num_steps"))

    assert not TuningCache(tmp_path, "NVIDIA H100", VERSIONS).has(SHAPE)


def test_a_folder_that_cannot_be_written_is_said_and_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cache = TuningCache(tmp_path / "file", "NVIDIA H100", VERSIONS)

    cache.keep({SHAPE: FIRST})

    assert cache.get(SHAPE) == FIRST
    assert "each start measures anew" in caplog.text


def test_the_folder_is_octavos(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))

    assert cache_folder() == tmp_path / "linear-tuning"


def test_until_it_is_measured_a_layer_is_the_vendors(device: str) -> None:
    backend = TritonBackend(torch.device(device, 0) if device == "cuda" else torch.device(device))

    handle = backend.prepare_linear(torch.zeros(8, 16))

    assert handle.few.choice is None


def test_layers_of_one_shape_share_the_choice_that_was_kept(tmp_path: Path) -> None:
    cache = TuningCache(tmp_path, "NVIDIA H100", VERSIONS)
    cache.keep({SHAPE: FIRST})
    shapes = LinearShapes(132, cache)
    weight = torch.empty(4096, 14336, dtype=torch.bfloat16, device="meta")

    few = shapes.few(weight)

    assert few.choice == FIRST
    assert shapes.few(weight) is few
    assert shapes.few(weight.t()).choice is None


@pytest.mark.parametrize("num_rows", [1, 16, 17])
def test_a_layer_takes_the_way_that_was_chosen_up_to_16_rows(
    num_rows: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 40, generator=generator).to(device) for rows in (num_rows, 24))
    tiling = SplitTiling(block_n=16, block_k=16, splits=2, num_warps=4, num_stages=2)
    few = FewRows(shape=LinearShape(out_features=24, in_features=40, dtype="float32"), choice=tiling)
    linear = TritonLinear(weight=weight, bias=weight[:, 0].contiguous(), few=few)
    vendors: list[int] = []

    def vendor(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        vendors.append(x.shape[0])
        return skinny_linear_ref.skinny_linear(x, weight, linear.bias)

    monkeypatch.setattr(torch.nn.functional, "linear", vendor)

    out = linear(x)

    assert_close(out, skinny_linear_ref.skinny_linear(x, weight, linear.bias), 2e-5)
    assert vendors == ([17] if num_rows == 17 else [])


@pytest.mark.gpu
def test_a_gpu_is_measured_once(tmp_path: Path) -> None:
    cache = TuningCache(tmp_path, "this", VERSIONS)
    shapes = LinearShapes(132, cache)
    weights = [torch.randn(1024, 2048, device="cuda").bfloat16() for _ in range(3)]
    linears = [TritonLinear(weight=weight, bias=None, few=shapes.few(weight)) for weight in weights]

    shapes.tune(linears)

    few = linears[0].few
    assert cache.has(few.shape)
    assert cache.get(few.shape) == few.choice
    assert all(linear.few is few for linear in linears)
