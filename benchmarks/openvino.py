"""Our engine and OpenVINO GenAI on one GGUF file of Qwen2.5-0.5B's shape, in turns, in one run: what the ratio of both is.

    python -m benchmarks.openvino TOKENIZER.gguf [--install] [--rounds 7] [--json FILE]

Weights are random, 8 bits (Q8_0); the file is made once, some 530 MB, with the tokenizer of TOKENIZER.gguf, of whose
tokens none is looked at. OpenVINO GenAI is the package as it comes, some 70 MB, in an environment of its own that
`--install` makes: its continuous batching in a child process, asleep while ours computes. Both decode greedily.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environments import CACHE, install, interpreter
from benchmarks.llama_cpp import Child, Ours, add_arguments, cases_of, compare, cpu_flags, versions
from benchmarks.qwen05b import CONFIG
from benchmarks.random_gguf import write_random_gguf
from benchmarks.record import write_json

HOME = CACHE / "openvino"
PACKAGES = ("openvino-genai", "numpy")
CHILD = Path(__file__).with_name("openvino_child.py")
BARS = {"decode 1": 1.2, "decode 8": 1.7, "decode 32": 1.7, "prefill 128": 1.5}
"""Ours over theirs, at prompts of 128 tokens."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a row a case."""
    values = parser().parse_args(argv)
    python = install(HOME, PACKAGES) if values.install else interpreter(HOME)
    if not python.exists():
        raise SystemExit(f"there is no OpenVINO GenAI in {HOME}; install it with --install")
    model = HOME / f"qwen2-{CONFIG['hidden_size']}-{CONFIG['num_hidden_layers']}.Q8_0.gguf"
    if not model.exists():
        write_random_gguf(model, CONFIG, Path(values.tokenizer))
    cases = cases_of(values)
    command = [str(python), "-P", str(CHILD), str(model), str(values.threads), str(max(case.batch for case in cases))]
    theirs = Child("OpenVINO GenAI", command, os.environ)
    about = theirs.about
    print(f"openvino-genai {about['version']}")
    results = compare(
        "OpenVINO", Ours(str(model), "int8", values.threads, max_model_len=2048), theirs, cases, values, BARS
    )
    setup = {"config": CONFIG, "threads": values.threads, "context": values.context, "openvino_genai": about,
             "cpu_flags": cpu_flags(), "versions": versions()}  # fmt: skip
    write_json(values.json, "benchmarks.openvino", {**setup, "results": [result.as_json() for result in results]})
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.openvino", description="Our engine beside OpenVINO's.")
    made.add_argument("tokenizer", help="a .gguf file whose tokenizer the random one gets")
    add_arguments(made)
    return made


if __name__ == "__main__":
    raise SystemExit(main())
