"""From a process's start to the engine's first answer: stage by stage, and what Triton compiles before and after ready.

The engine is built as `octavo serve` builds it, in a fresh process; the HTTP server in front needs packages that the report
does without, and `octavo bench startup` measures it. The model is Llama 8B's shape in one safetensors file of zeros that
takes no room on the disk: reading it is timed as of a file in the page cache, and what is computed from it means nothing.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

import torch

from benchmarks.gpu_report.models import SHAPES, TINY
from octavo_server.config import EngineConfig
from octavo_server.engine.build import build_engine
from octavo_server.engine.request import Request, SamplingParams
from octavo_server.engine.startup import StartupProgress
from octavo_server.models.config import parse_model_config
from octavo_server.models.expected_shapes import expected_shapes
from octavo_server.tokenizer.byte_tokenizer import byte_tokenizer

if TYPE_CHECKING:
    from benchmarks.gpu_report.record import PartRecord

_SHAPE = "llama-8b"


def run(record: PartRecord, device: torch.device) -> None:
    # The stand-in for a tokenizer has a token for each byte.
    raw = {**TINY[_SHAPE], "vocab_size": 512} if record.is_tiny else SHAPES[_SHAPE]
    with tempfile.TemporaryDirectory(dir=record.path.parent) as name:
        folder = Path(name)
        write_zero_model(raw, folder / "model")
        for kind in ("cold", "warm"):
            _start(record, kind, folder, "cpu" if device.type == "cpu" else "cuda")


def write_zero_model(raw: dict[str, Any], folder: Path) -> None:
    """A folder that `load_model` takes: bfloat16 zeros in a sparse file."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    byte_tokenizer(folder).backend.save(str(folder / "tokenizer.json"))
    header, end = {}, 0
    for name, shape in expected_shapes(parse_model_config(raw, {}, source="gpu_report")).items():
        begin, end = end, end + prod(shape) * torch.bfloat16.itemsize
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def _start(record: PartRecord, kind: str, folder: Path, device: str) -> None:
    """Cold: no kernel is compiled yet and the file is in no cache."""
    triton = folder / "triton"
    env = {**os.environ, "TRITON_CACHE_DIR": str(triton), "OCTAVO_CACHE": str(folder / "cache")}
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_report.startup",
        str(folder / "model"),
        device,
        str(triton),
        str(monotonic()),
    ]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    for stage, seconds in found["stage_seconds"].items():
        record.figure(f"{kind}: {stage}", seconds, "s")
    record.figure(f"{kind}: ready", found["ready_s"], "s", "from the process's start; zeros in the page cache, no disk")
    record.figure(f"{kind}: first answer", found["answer_s"], "s", "98 tokens in, 4 out, after ready")
    if device == "cpu":
        record.lacks(f"{kind}: kernels compiled", "torch's operators on a CPU, of which none is compiled")
        return
    record.figure(f"{kind}: kernels compiled until ready", found["num_compiled"], "kernels", "by this start and before")
    record.figure(f"{kind}: kernels compiled after ready", found["num_compiled_later"], "kernels")


def main(argv: list[str]) -> int:
    """argv: the model's folder, the device, Triton's cache, when the process was started; prints what it took as JSON."""
    model, device, cache, started_s = argv
    progress = StartupProgress()
    engine = build_engine(EngineConfig(model=model, device=_device(device)), progress).engine
    progress.enter("ready")
    ready_s, num_compiled = monotonic() - float(started_s), _num_compiled(Path(cache))
    began_s = monotonic()
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    engine.add_request(
        Request(request_id="0", prompt_token_ids=tuple(range(2, 100)), params=params, arrival_s=monotonic())
    )
    while engine.has_work:
        engine.step()
    found = {
        "stage_seconds": progress.stage_seconds,
        "ready_s": ready_s,
        "answer_s": monotonic() - began_s,
        "num_compiled": num_compiled,
        "num_compiled_later": _num_compiled(Path(cache)) - num_compiled,
    }
    print(json.dumps(found))
    return 0


def _device(name: str) -> Literal["cpu", "cuda"]:
    return "cpu" if name == "cpu" else "cuda"


def _num_compiled(cache: Path) -> int:
    """Binaries that Triton has put there."""
    return sum(1 for pattern in ("*.cubin", "*.hsaco") for _ in cache.rglob(pattern))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
