"""How much a busy machine slows the engine: decode and prefill alone, and beside processes that take all they get.

    python -m benchmarks.busy MODEL [--quantization int4] [--beside 1,2] [--rounds 5] [--json FILE]

With as many threads as processors, and N other processes that never wait, a fair share of the machine is
threads / (threads + N). The last column is the measured rate over that share of the rate alone: 1 is a slowdown in
proportion, and less is what waiting for a thread that has no processor costs. Alone and beside take turns.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks.arguments import count, counts
from benchmarks.llama_cpp import Case, Ours, cpu_flags, versions
from benchmarks.record import write_json

CASES = (
    Case(name="decode 1", batch=1, prompt_tokens=128, steps=100),
    Case(name="decode 8", batch=8, prompt_tokens=128, steps=40),
    Case(name="prefill 512", batch=1, prompt_tokens=512, steps=0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """Tokens a second, a number a round."""

    case: str
    beside: int
    """Other processes."""
    share: float
    """Of the machine, that is fair."""
    alone_rates: list[float]
    busy_rates: list[float]

    @property
    def left(self) -> float:
        """Of the rate alone."""
        return median(self.busy_rates) / median(self.alone_rates)

    @property
    def in_proportion(self) -> float:
        return self.left / self.share

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "left": self.left, "in_proportion": self.in_proportion}

    def row(self) -> str:
        return (
            f"{self.case:<12} {self.beside:>6} {median(self.alone_rates):>9.1f} {median(self.busy_rates):>9.1f} "
            f"{self.left:>7.2f} {self.share:>6.2f} {self.in_proportion:>14.2f}"
        )


def fair_share(threads: int, beside: int, processors: int) -> float:
    """Of what `threads` have alone, where all that run have as much of the machine."""
    return min(1.0, processors / (threads + beside)) / min(1.0, processors / threads)


@contextmanager
def stopped_processes(number: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that would run without end, stopped."""
    with ExitStack() as stack:
        made = []
        for _ in range(number):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(process.wait)
            stack.callback(process.kill)
            process.send_signal(signal.SIGSTOP)
            made.append(process)
        yield made


@contextmanager
def running(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Lets them run meanwhile."""
    for process in processes:
        process.send_signal(signal.SIGCONT)
    try:
        # until the scheduler has dealt the processors out anew
        time.sleep(0.2 if processes else 0.0)
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGSTOP)


def measure(ours: Ours, case: Case, beside: int, rounds: int, threads: int) -> Slowdown:
    """Turns alone and beside; a round before the first is thrown away."""
    rates: tuple[list[float], list[float]] = ([], [])
    with stopped_processes(beside) as processes:
        for index in range(rounds + 1):
            for others, found in zip(([], processes), rates, strict=True):
                with running(others):
                    seconds = ours.seconds(case, case.prompts(index, min(ours.vocabulary, 40_000)))
                # the sum, not the median: a step that waits for a processor is what is looked for
                work = case.batch * case.steps if case.steps else case.prompt_tokens
                found.append(work / sum(seconds))
    share = fair_share(threads, beside, len(os.sched_getaffinity(0)))
    return Slowdown(case=case.name, beside=beside, share=share, alone_rates=rates[0][1:], busy_rates=rates[1][1:])


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a row a case and number of processes."""
    values = parser().parse_args(argv)
    ours = Ours(values.model, values.quantization, values.threads)
    print(f"{values.threads} threads, {values.rounds} rounds; tokens a second alone and beside other processes")
    print(f"{'case':<12} {'beside':>6} {'alone':>9} {'busy':>9} {'left':>7} {'fair':>6} {'in proportion':>14}")
    found = []
    for case in CASES:
        for beside in values.beside:
            found.append(measure(ours, case, beside, values.rounds, values.threads))
            print(found[-1].row(), flush=True)
    setup = {"quantization": values.quantization, "threads": values.threads, "cpu_flags": cpu_flags(),
             "versions": versions(), "results": [each.as_json() for each in found]}  # fmt: skip
    write_json(values.json, "benchmarks.busy", setup)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.busy", description="Our engine on a busy machine.")
    made.add_argument("model", help="a .gguf file or a checkpoint's folder")
    made.add_argument("--quantization", default="int4", choices=["none", "int8", "int4"], help="default: %(default)s")
    made.add_argument("--threads", type=count, default=len(os.sched_getaffinity(0)), help="default: all processors")
    made.add_argument("--beside", type=counts, default=[1, 2], help="other processes (default: 1,2)")
    made.add_argument("--rounds", type=count, default=5, help="turns of both a case (default: %(default)s)")
    made.add_argument("--json", default="", metavar="FILE", help="write the figures there")
    return made


if __name__ == "__main__":
    raise SystemExit(main())
