"""`octavo compile`: after it no start compiles a kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from octavo_server import cli
from octavo_server.compile_command import write_model

START = """
import sys
from octavo_kernels import numba_compile
from octavo_server.llm import LLM, SamplingParams

for mode in ("int8", "int4"):
    llm = LLM(sys.argv[1], quantization=mode, num_gpu_blocks_override=64)
    for params in (SamplingParams(max_tokens=9, temperature=0), SamplingParams(max_tokens=3, top_k=5, seed=1, n=3)):
        llm.generate(["a b c d e f g h i j", "k"], params, use_tqdm=False)
print(*numba_compile.counts())
"""


def run(*arguments: str, cache: Path) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "OCTAVO_CACHE")}
    env = {**kept, "OCTAVO_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run([sys.executable, *arguments], check=True, env=env, capture_output=True, text=True).stdout


@pytest.mark.full
@pytest.mark.parametrize("head_dim", [32, 24])
def test_a_start_after_it_compiles_nothing(tmp_path: Path, head_dim: int) -> None:
    """Of a model of other sizes, whose step is one kernel, or not."""
    told = run("-m", "octavo_server", "compile", cache=tmp_path)
    model = tmp_path / "model"
    model.mkdir()

    compiled, found = map(int, run("-c", START, str(write_model(model, head_dim)), cache=tmp_path).split())

    assert int(told.split()[0]) >= 5
    assert compiled == 0
    assert found >= 3
    assert run("-m", "octavo_server", "compile", cache=tmp_path).startswith("0 kernels compiled")


def test_it_takes_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compile", "model"]) == 2
    assert "model" in capsys.readouterr().err
