"""What serving costs: output tokens a second through HTTP over those of the engine alone, at 32 requests at once.

    python -m benchmarks.server_overhead MODEL [-c 32] [--rounds 5] [--quantization none] [--json FILE]

Three sides in one run: the offline engine in this process, `octavo serve --engine-process in` and the same with `out`.
Every round measures each once, in turn, with the same new prompts, so that what else the machine does meets all alike;
a ratio is the median of the rounds' own ratios. The clients stream and run on the same processors, whose share of the
work counts against the server here and would not in life.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from benchmarks.record import write_json
from benchmarks.throughput import Workload, rate
from octavo_server import LLM
from octavo_server.bench.client import Target
from octavo_server.bench.datasets import Ask
from octavo_server.bench.load import Level, run_load
from octavo_server.bench.prompts import PromptShape, make_prompts
from octavo_server.bench.server_process import serving
from octavo_server.bench.stats import table

BAR = 0.85
"""Least share of the offline engine's throughput that the default server must reach on a CPU."""
OFFLINE, IN, OUT = "engine alone", "server, engine in", "server, engine out"


@dataclass(slots=True, kw_only=True)
class Rates:
    """Output tokens a second of each side, a round each."""

    of: dict[str, list[float]] = field(default_factory=dict)

    def ratio(self, side: str, to: str) -> float:
        """Median over the rounds of one side's rate over another's."""
        return median(one / other for one, other in zip(self.of[side], self.of[to], strict=True))


def measure(sides: dict[str, Callable[[int], float]], rounds: int) -> Rates:
    """Each side is a function from the seed of the prompts to a rate."""
    rates = Rates(of={name: [] for name in sides})
    for number in range(rounds):
        for name, run in sides.items():
            rates.of[name].append(run(number))
            print(f"round {number + 1} of {rounds}, {name}: {rates.of[name][-1]:.1f} tok/s", file=sys.stderr)
    return rates


def served_rate(url: str, size: int, workload: Workload, seed: int, vocab_size: int) -> float:
    """Output tokens a second of `size` streams at once, as their clients count them; the prompts are `rate`'s.

    Raises:
        RuntimeError: a request failed.
    """
    shape = PromptShape(num_tokens=workload.prompt_tokens, vocab_size=vocab_size)
    prompts = make_prompts(shape, size, seed=1000 * seed + size)
    asks = [Ask(content=prompt, max_tokens=workload.output_tokens) for prompt in prompts]
    round_ = asyncio.run(
        run_load(Target(url=url, model="model", endpoint="completions"), asks, Level(concurrency=size))
    )
    if round_.errors:
        raise RuntimeError(f"{size - len(round_.good)} of {size} requests failed: {', '.join(round_.errors)}")
    return sum(timing.output_tokens for timing in round_.good) / round_.wall_s


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; 1 where the bar is missed."""
    values = parser().parse_args(argv)
    workload = Workload(prompt_tokens=values.prompt_tokens, output_tokens=values.max_tokens)
    longest = workload.prompt_tokens + workload.output_tokens
    settings = {"quantization": values.quantization, "max_model_len": longest, "max_num_seqs": values.concurrency}
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    with ExitStack() as servers:
        llm = LLM(values.model, **settings)
        vocab_size = llm.engine.limits.vocab_size

        def server(where: str) -> Callable[[int], float]:
            argv = [values.model, "--served-model-name", "model", "--engine-process", where, *flags]
            url = servers.enter_context(serving(argv)).url
            return lambda seed: served_rate(url, values.concurrency, workload, seed, vocab_size)

        sides = {
            OFFLINE: lambda seed: rate(llm, values.concurrency, workload, seed),
            IN: server("in"),
            OUT: server("out"),
        }
        for run in sides.values():
            run(99)
        rates = measure(sides, values.rounds)
    print_rates(rates, values, workload)
    figures = {
        "model": values.model, "quantization": values.quantization, "concurrency": values.concurrency,
        "rates": rates.of, "in_to_offline": rates.ratio(IN, OFFLINE), "out_to_offline": rates.ratio(OUT, OFFLINE),
        "out_to_in": rates.ratio(OUT, IN),
    }  # fmt: skip
    write_json(values.json, "benchmarks.server_overhead", figures)
    return 0 if rates.ratio(IN, OFFLINE) >= BAR else 1


def print_rates(rates: Rates, values: argparse.Namespace, workload: Workload) -> None:
    """The table and the ratios."""
    print(f"{values.model} {values.quantization}: {workload.prompt_tokens} in, {workload.output_tokens} out, "
          f"{values.concurrency} at once, {values.rounds} rounds, load average {os.getloadavg()[0]:.1f}")  # fmt: skip
    rows = [
        (side, round(median(found), 1), round(min(found), 1), round(max(found), 1), f"{rates.ratio(side, OFFLINE):.3f}")
        for side, found in rates.of.items()
    ]
    print(table(("side", "tok/s", "slowest", "fastest", "of the engine alone"), rows))
    reached = rates.ratio(IN, OFFLINE)
    print(f"engine out to in: {rates.ratio(OUT, IN):.3f}")
    print(f"server to engine alone: {reached:.3f}, bar {BAR} {'reached' if reached >= BAR else 'MISSED'}")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.server_overhead", description="What serving costs.")
    made.add_argument("model", help="as of octavo serve")
    made.add_argument("-c", "--concurrency", type=int, default=32, help="default: %(default)s")
    made.add_argument("--quantization", default="none", help="as of octavo serve (default: %(default)s)")
    made.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    made.add_argument("--prompt-tokens", type=int, default=128, help="default: %(default)s")
    made.add_argument("--max-tokens", type=int, default=64, help="default: %(default)s")
    made.add_argument("--json", default="", metavar="FILE", help="write the figures there")
    return made


if __name__ == "__main__":
    raise SystemExit(main())
