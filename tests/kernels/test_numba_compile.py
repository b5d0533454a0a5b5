"""Compiled kernels: kept, and taken over from where an image brings them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

KERNEL = """
import numpy
from octavo_kernels.numba_compile import kernel

@kernel
def double(values):
    for i in range(len(values)):
        values[i] *= 2

values = numpy.ones(3)
double(values)
print(sum(double.stats.cache_hits.values()), sum(double.stats.cache_misses.values()), values[0])
"""


@pytest.fixture
def ran(tmp_path: Path):
    """(hits, misses, result) of a program with one kernel and these variables."""
    program = tmp_path / "program.py"
    program.write_text(KERNEL)

    def run(**env: Path) -> list[str]:
        base = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "OCTAVO_"))}
        paths = {name: str(value) for name, value in env.items()}
        done = subprocess.run(
            [sys.executable, str(program)], capture_output=True, text=True, check=True, env={**base, **paths}
        )
        return done.stdout.split()

    return run


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_an_image_brings_is_not_compiled_again_and_stays_as_it_is(ran, tmp_path: Path) -> None:
    image, pod = tmp_path / "image", tmp_path / "pod"
    assert ran(OCTAVO_CACHE=image) == ["0", "1", "2.0"]
    brought = files(image)

    first = ran(OCTAVO_CACHE=pod, OCTAVO_COMPILED_KERNELS=image)
    again = ran(OCTAVO_CACHE=pod, OCTAVO_COMPILED_KERNELS=tmp_path / "nothing")

    assert first == again == ["1", "0", "2.0"]
    assert files(image) == brought
    assert files(pod).keys() == brought.keys()


def test_what_was_compiled_for_another_processor_is_left_alone(ran, tmp_path: Path) -> None:
    other, pod = tmp_path / "image" / "numba-of-another-processor", tmp_path / "pod"
    other.mkdir(parents=True)
    (other / "kernel.nbc").write_text("not for us")

    assert ran(OCTAVO_CACHE=pod, OCTAVO_COMPILED_KERNELS=other.parent) == ["0", "1", "2.0"]
    assert not (pod / other.name).exists()
