"""How much more the engine does for many than for one: output tokens a second at 1, 4, 16 and 32 requests at once.

    python -m benchmarks.throughput MODEL [-c 1,4,16,32] [--rounds 5] [--quantizations none,int4] [--profile] [--json FILE]

The offline engine alone. Every round measures each number of requests of each mode once, in turn, so that what else the
machine does meets all alike; figures are medians, and the ratio to one request is the median of the rounds' own ratios.
Prompts are random and new each time, so the prefix cache has no part in it. `--profile` says where a step's time goes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.arguments import count, counts
from benchmarks.record import write_json
from octavo_server import LLM, SamplingParams
from octavo_server.bench.prompts import PromptShape, make_prompts
from octavo_server.bench.stats import table

BARS = {"none": 4.0, "int4": 2.5}
"""Mode → how much more 16 at once must give than 1."""
BAR_AT = 16
_NAMES = {"none": "float32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What each request asks."""

    prompt_tokens: int
    output_tokens: int


@dataclass(slots=True, kw_only=True)
class Series:
    """One mode's figures: requests at once → output tokens a second, a round each."""

    mode: str
    rates: dict[int, list[float]] = field(default_factory=dict)

    def median(self, size: int) -> float:
        return median(self.rates[size])

    def ratio(self, size: int) -> float:
        """Median over the rounds of the rate at `size` over that at one."""
        return median(rate / one for rate, one in zip(self.rates[size], self.rates[1], strict=True))

    @property
    def reaches_its_bar(self) -> bool:
        """True also where there is none."""
        return BAR_AT not in self.rates or self.mode not in BARS or self.ratio(BAR_AT) >= BARS[self.mode]


def measure(llms: dict[str, LLM], sizes: Sequence[int], workload: Workload, rounds: int, seed: int = 0) -> list[Series]:
    """One series a mode."""
    series = [Series(mode=mode, rates={size: [] for size in sizes}) for mode in llms]
    for number in range(rounds):
        for size in sizes:
            for item in series:
                item.rates[size].append(rate(llms[item.mode], size, workload, seed + number))
    return series


def rate(llm: LLM, size: int, workload: Workload, seed: int) -> float:
    """Output tokens a second of `size` requests at once, prefill included."""
    shape = PromptShape(num_tokens=workload.prompt_tokens, vocab_size=llm.engine.limits.vocab_size)
    params = SamplingParams(temperature=0.0, max_tokens=workload.output_tokens, ignore_eos=True)
    prompts = make_prompts(shape, size, seed=1000 * seed + size)
    started = perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = perf_counter() - started
    return sum(len(output.outputs[0].token_ids) for output in outputs) / seconds


@dataclass(slots=True)
class StepProfile:
    """Seconds in each part of the steps; parts do not contain each other, `rest` is Python between them."""

    seconds: dict[str, float] = field(default_factory=dict)
    _wrapped: list[tuple[Any, str]] = field(default_factory=list)

    def wrap(self, owner: Any, method: str, part: str) -> None:
        """Times `owner.method` as `part`."""
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[part] = self.seconds.get(part, 0.0) + perf_counter() - started

        setattr(owner, method, timed)
        self._wrapped.append((owner, method))

    def unwrap(self) -> None:
        """Leaves the owners as they were."""
        for owner, method in self._wrapped:
            delattr(owner, method)

    def shares(self) -> dict[str, float]:
        """Part → share of all time in steps."""
        whole = self.seconds["step"]
        parts = {name: value / whole for name, value in self.seconds.items() if name != "step"}
        return {**parts, "rest": 1 - sum(parts.values())}


def profile(llm: LLM, size: int, workload: Workload) -> StepProfile:
    """Where the time of `size` requests goes."""
    found = StepProfile()
    engine: Any = llm.engine
    runner = engine._runner
    found.wrap(engine._scheduler, "schedule", "schedule")
    found.wrap(engine._scheduler, "update", "update")
    found.wrap(runner._builder, "build", "batch")
    found.wrap(runner.decoder, "forward", "forward")
    found.wrap(runner.decoder, "logits", "logits")
    found.wrap(runner._sampler, "sample", "sample")
    found.wrap(engine, "step", "step")
    rate(llm, size, workload, seed=77)
    found.unwrap()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; 1 where a bar is missed."""
    values = parser().parse_args(argv)
    modes, sizes = values.quantizations.split(","), list(values.concurrency)
    if 1 not in sizes:
        sizes.insert(0, 1)
    workload = Workload(prompt_tokens=values.prompt_tokens, output_tokens=values.max_tokens)
    longest = workload.prompt_tokens + workload.output_tokens
    llms = {mode: LLM(values.model, quantization=mode, max_model_len=longest) for mode in modes}
    for llm in llms.values():
        rate(llm, max(sizes), workload, seed=99)
    series = measure(llms, sizes, workload, values.rounds)
    print(f"{values.model}: {workload.prompt_tokens} in, {workload.output_tokens} out, {values.rounds} rounds, "
          f"load average {os.getloadavg()[0]:.1f}")  # fmt: skip
    header = ("mode", "at once", "tok/s", "slowest", "fastest", "x of one")
    print(table(header, [row for item in series for row in _rows(item, sizes)]))
    for item in series:
        if BAR_AT in sizes and item.mode in BARS:
            verdict = "reached" if item.reaches_its_bar else "MISSED"
            print(f"{_name(item.mode)} at {BAR_AT}: {item.ratio(BAR_AT):.2f}x, bar {BARS[item.mode]}x {verdict}")
    shares = _print_profiles(llms, sizes, workload) if values.profile else {}
    results = [
        {"mode": _name(item.mode), "rates": item.rates, "ratios": {size: item.ratio(size) for size in sizes}}
        for item in series
    ]
    write_json(values.json, "benchmarks.throughput", {"model": values.model, "results": results, "profile": shares})
    return 0 if all(item.reaches_its_bar for item in series) else 1


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description="Many requests against one.")
    made.add_argument("model", help="as of octavo serve")
    made.add_argument("-c", "--concurrency", type=counts, default="1,4,16,32", help="default: %(default)s")
    made.add_argument("--quantizations", default="none,int4", help="modes to measure (default: %(default)s)")
    made.add_argument("--rounds", type=count, default=5, help="default: %(default)s")
    made.add_argument("--prompt-tokens", type=count, default=128, help="default: %(default)s")
    made.add_argument("--max-tokens", type=count, default=64, help="default: %(default)s")
    made.add_argument("--profile", action="store_true", help="also say where a step's time goes")
    made.add_argument("--json", default="", metavar="FILE", help="write the figures there")
    return made


def _rows(series: Series, sizes: Sequence[int]) -> list[tuple[object, ...]]:
    return [
        (_name(series.mode), size, series.median(size), min(series.rates[size]), max(series.rates[size]),
         f"{series.ratio(size):.2f}")
        for size in sizes
    ]  # fmt: skip


def _print_profiles(llms: dict[str, LLM], sizes: Sequence[int], workload: Workload) -> dict[str, dict[str, float]]:
    found = {}
    for mode, llm in llms.items():
        for size in (1, max(sizes)):
            shares = profile(llm, size, workload).shares()
            found[f"{_name(mode)} {size}"] = {part: round(share, 4) for part, share in shares.items()}
            print(
                f"{_name(mode)}, {size} at once: " + ", ".join(f"{part} {share:.1%}" for part, share in shares.items())
            )
    return found


def _name(mode: str) -> str:
    return _NAMES.get(mode, mode)


if __name__ == "__main__":
    raise SystemExit(main())
