"""Our engine and natively built llama.cpp on the same GGUF file, in turns, in one run: what the ratio of both is.

    python -m benchmarks.llama_cpp MODEL.gguf [--install] [--rounds 7] [--json FILE]

llama.cpp is `llama-cpp-python` built from source for this processor (GGML_NATIVE), in an environment of its own that
`--install` makes. It runs in a child process that is asleep while ours computes, and the other way round. Ours is the
whole engine, scheduler, sampler and detokenizer included; theirs is `llama_decode` of a batch and an argmax. Both
decode greedily. A busy machine moves both, hence rounds of turns: the ratio is the median round's, its spread beside it.

Where its kernels die of an illegal instruction, it runs with plain layouts, and the table's head says so.

llama.cpp's threads wait for each other by spinning, which on a busy machine slows it 10 to 30 times. So they get the
bound on it that ours have; `--spin` leaves them as they come, for a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, NoReturn

from benchmarks.environments import CACHE, install, interpreter
from benchmarks.record import write_json
from octavo_server.engine.build import OMP_SPINS

HOME = CACHE / "llama-cpp"
PACKAGES = ("--no-binary", "llama-cpp-python", "llama-cpp-python", "numpy")
CHILD = Path(__file__).with_name("llama_cpp_child.py")
BARS = {"decode 1": 2.5, "decode 8": 4.0, "decode 32": 5.0, "prefill 512": 6.0}
"""Ours over theirs, for SmolLM2-135M Q4_1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One measurement; `steps` 0 is a prefill of one prompt."""

    name: str
    batch: int
    prompt_tokens: int
    steps: int

    def prompts(self, seed: int, vocabulary: int) -> list[list[int]]:
        rng = Random(seed)
        return [[rng.randrange(10, vocabulary) for _ in range(self.prompt_tokens)] for _ in range(self.batch)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Tokens a second of both, a number a round."""

    case: Case
    ours: list[float]
    theirs: list[float]
    aim: float | None
    """Ours over theirs; None: none is set."""

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": median(self.ratios), "ratio_of_bests": max(self.ours) / max(self.theirs)}

    def row(self) -> str:
        ratios = self.ratios
        aim = "" if self.aim is None else f"   aim {self.aim}"
        return (
            f"{self.case.name:<12} {median(self.ours):>9.1f} {median(self.theirs):>10.1f} "
            f"{median(ratios):>7.2f} [{min(ratios):.2f} .. {max(ratios):.2f}] "
            f"{max(self.ours) / max(self.theirs):>9.2f}{aim}"
        )


class Ours:
    """The engine in this process."""

    def __init__(self, model: str, quantization: str, threads: int, **settings: Any) -> None:
        import torch

        from octavo_server.llm import LLM

        torch.set_num_threads(threads)
        # What a second run of the same prompts would read from the cache is not computed.
        self._llm = LLM(model, quantization=quantization, enable_prefix_caching=False, **settings)
        self.vocabulary = self._llm.engine.limits.vocab_size
        self._count = 0

    def seconds(self, case: Case, prompts: list[list[int]]) -> list[float]:
        """Of each decode step with all sequences, or of the one prefill."""
        engine = self._llm.engine
        started = time.perf_counter()
        for prompt in prompts:
            self._add(prompt, case.steps + len(prompts) + 2)
        begun: set[str] = set()
        while len(begun) < len(prompts):
            # Those that fitted into an earlier step go on meanwhile.
            begun |= {delta.request_id for delta in engine.step() if delta.tokens}
        if not case.steps:
            taken = [time.perf_counter() - started]
        else:
            # The step in which the last prompt ended may have been a chunk of several.
            taken = [self._step(case.batch) for _ in range(case.steps)]
        while engine.has_work:
            engine.step()
        return taken

    def _step(self, batch: int) -> float:
        started = time.perf_counter()
        deltas = self._llm.engine.step()
        taken = time.perf_counter() - started
        assert sum(bool(delta.tokens) for delta in deltas) == batch
        return taken

    def _add(self, prompt: list[int], max_tokens: int) -> None:
        from octavo_server.engine.request import Request, SamplingParams

        self._count += 1
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        request = Request(
            request_id=f"bench-{self._count}",
            prompt_token_ids=tuple(prompt),
            params=params,
            arrival_s=time.monotonic(),
        )
        self._llm.engine.add_request(request)


class Child:
    """Another engine in a process of its own, which answers a line of JSON with one; the first says what it is."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
        )
        self._about = self._answer()
        if self._about is None:
            self.close()

    @property
    def status(self) -> int | None:
        """With which it has ended; None while it runs."""
        return self._process.returncode

    @property
    def about(self) -> dict[str, Any]:
        return self._about or self._fail()

    def seconds(self, case: Case, prompts: list[list[int]]) -> list[float]:
        task = {"task": "decode" if case.steps else "prefill", "prompts": prompts, "steps": case.steps}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        seconds: list[float] = (self._answer() or self._fail())["seconds"]
        return seconds

    def close(self) -> None:
        """Ends it."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any] | None:
        """None: it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] | None = json.loads(line) if line else None
        return answer

    def _fail(self) -> NoReturn:
        self.close()
        raise SystemExit(f"{self._name} ended with status {self.status}; run with --install to build it")


def start_llama_cpp(python: Path, model: str, threads: int, cases: Sequence[Case], *, spin: bool) -> Child:
    """With its fastest layout that runs here."""
    env = dict(os.environ) if spin else {**os.environ, "GOMP_SPINCOUNT": str(OMP_SPINS)}
    room = (max(case.batch for case in cases), max(case.prompt_tokens + case.steps for case in cases) + 1)
    # -P: this folder holds a llama_cpp.py that is not theirs
    command = [str(python), "-P", str(CHILD), model, str(threads)]
    child = Child("llama.cpp", [*command, "repacked", *map(str, room)], env)
    if child.status == -signal.SIGILL:
        child = Child("llama.cpp", [*command, "plain", *map(str, room)], env)
    return child


def measure(ours: Ours, theirs: Child, case: Case, rounds: int, aim: float | None) -> Result:
    """Turns of both with the same prompts; a round before the first is thrown away."""
    rates: tuple[list[float], list[float]] = ([], [])
    sides: tuple[Ours | Child, ...] = (ours, theirs)
    for index in range(rounds + 1):
        prompts = case.prompts(index, min(ours.vocabulary, 40_000))
        for side, found in zip(sides, rates, strict=True):
            seconds = side.seconds(case, prompts)
            work = case.batch if case.steps else case.prompt_tokens
            found.append(work / median(seconds))
            # OpenMP's threads spin a little after their work.
            time.sleep(0.05)
    return Result(case=case, ours=rates[0][1:], theirs=rates[1][1:], aim=aim)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a row a case."""
    values = parser().parse_args(argv)
    python = install(HOME, PACKAGES, {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}) if values.install else interpreter(HOME)
    if not python.exists():
        raise SystemExit(f"there is no llama.cpp in {HOME}; build it with --install")
    cases = cases_of(values)
    theirs = start_llama_cpp(python, values.model, values.threads, cases, spin=values.spin)
    about = theirs.about
    print(f"llama-cpp-python {about['version']}: {about['system'].strip()} layout {about['layout']}")
    ours = Ours(values.model, values.quantization, values.threads)
    results = compare("llama.cpp", ours, theirs, cases, values, BARS)
    setup = {"model": Path(values.model).name, "sha256": _sha256(values.model), "threads": values.threads,
             "quantization": values.quantization, "context": values.context, "spin": values.spin, "llama_cpp": about,
             "cpu_flags": cpu_flags(), "versions": versions()}  # fmt: skip
    write_json(values.json, "benchmarks.llama_cpp", {**setup, "results": [result.as_json() for result in results]})
    return 0


def cases_of(values: argparse.Namespace) -> list[Case]:
    """Decodes of each size and a prefill of each length, as the command line says."""
    decodes = [
        Case(name=f"decode {n}", batch=n, prompt_tokens=values.context, steps=values.steps) for n in values.batches
    ]
    prefills = [Case(name=f"prefill {n}", batch=1, prompt_tokens=n, steps=0) for n in values.prefill]
    return [*decodes, *prefills]


def compare(
    name: str, ours: Ours, theirs: Child, cases: Sequence[Case], values: argparse.Namespace, aims: Mapping[str, float]
) -> list[Result]:
    """Measures and prints a row a case; ends the other engine."""
    load = os.getloadavg()[0]
    print(f"{values.threads} threads each, load average {load:.1f}, {values.rounds} rounds; tokens a second")
    print(f"{'case':<12} {'ours':>9} {name:>10} {'ratio':>7} [least .. most] {'of bests':>9}")
    results = []
    for case in cases:
        results.append(measure(ours, theirs, case, values.rounds, aims.get(case.name)))
        print(results[-1].row(), flush=True)
    theirs.close()
    return results


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.llama_cpp", description="Our engine beside llama.cpp.")
    made.add_argument("model", help="a .gguf file")
    made.add_argument("--quantization", default="int4", choices=["none", "int8", "int4"], help="default: %(default)s")
    made.add_argument("--spin", action="store_true", help="let llama.cpp's threads spin without bound")
    add_arguments(made)
    return made


def add_arguments(made: argparse.ArgumentParser) -> None:
    """What a comparison with an engine in a child process has."""
    made.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all processors")
    made.add_argument("--rounds", type=int, default=7, help="turns of both a case (default: %(default)s)")
    made.add_argument("--batches", type=_numbers, default=[1, 8, 32], help="decodes at once (default: 1,8,32)")
    made.add_argument("--context", type=int, default=128, help="tokens of a decode's prompt (default: %(default)s)")
    made.add_argument(
        "--prefill", type=_numbers, default=[128, 512], help="tokens of a prefill's prompt (default: 128,512)"
    )
    made.add_argument(
        "--install", action="store_true", help="install the other engine first where it is missing or half installed"
    )
    made.add_argument("--steps", type=int, default=12, help="timed steps of a decode a round (default: %(default)s)")
    made.add_argument("--json", default="", metavar="FILE", help="write the figures there")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cpu_flags() -> list[str]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    return [flag for flag in flags if flag.startswith(("avx", "fma", "f16c", "amx"))]


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("octavo", "torch", "numba", "llvmlite", "numpy")}


if __name__ == "__main__":
    raise SystemExit(main())
