"""`octavo bench serve`: load on a running OpenAI-compatible server, in rounds, a row a level of load."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from octavo_server.bench.answerers import ServerAnswerer
from octavo_server.bench.client import Target, Timing
from octavo_server.bench.datasets import Ask, sha256_of
from octavo_server.bench.load import Level, Round, run_load
from octavo_server.bench.output import Output
from octavo_server.bench.quality import take_quality
from octavo_server.bench.record import Record, Result, describe_model
from octavo_server.bench.serve_plan import WORKLOAD, Plan, read_plan, serve_parser
from octavo_server.bench.server_facts import ServerFacts, ask_facts
from octavo_server.bench.slo import keeps, read_slo
from octavo_server.bench.stats import PERCENTILES, Measure, histogram, of_rounds, table
from octavo_server.progress import Bar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

COMMAND = "bench serve"
_RATES = ("output_tokens_per_s", "requests_per_s", "goodput_per_s")
_RATES_HEADER = ("load", "requests", "failed", "tok/s", "req/s", "good/s", "cached tok")
_TIMES_HEADER = ("load", "ms", "mean", *(f"p{percent}" for percent in PERCENTILES), "max")
_TIMES = {"ttft_ms": "TTFT", "itl_ms": "ITL", "tpot_ms": "TPOT", "e2e_ms": "E2E"}


@dataclass(slots=True, kw_only=True)
class LevelRun:
    """A level and what its rounds gave."""

    level: Level
    rounds: list[Round]


def bench_serve(argv: Sequence[str]) -> int:
    """Measures and prints a row a level; 1 where any request failed or the server went away."""
    values = serve_parser().parse_strictly(argv)
    plan, slo = read_plan(values), read_slo(values.goodput)
    output = Output.from_flags(values, COMMAND)
    runs, asked = asyncio.run(measure(plan))
    results = [summarize(run.level.name, run.rounds, slo) for run in runs]
    print(f"{plan.target.url}{plan.target.path} {plan.target.model}")
    print(table(_RATES_HEADER, [_rates_row(result) for result in results]))
    print(table(_TIMES_HEADER, [row for result in results for row in _times_rows(result)]))
    failures = _failures(runs)
    print("\n".join(failures), end="\n" if failures else "")
    if output.wants_record or output.plot:
        facts, quality = asyncio.run(_facts_and_quality(plan.target, is_asked=output.wants_record))
        workload = {name: getattr(values, name) for name in WORKLOAD}
        output.give(
            Record(
                command=COMMAND,
                workload=workload,
                results=results,
                model=_model(plan.target.model, facts.location, is_asked=output.wants_record),
                engine=facts.engine,
                resolved=facts.resolved,
                server=facts.server,
                prompts=_prompts(asked, runs),
                quality=quality,
                notes=output.notes,
            ),
            f"{plan.target.model} at {plan.target.url}",
        )
    return 1 if failures else 0


async def measure(plan: Plan) -> tuple[list[LevelRun], list[Ask]]:
    """All levels in each round, so that what the machine does meets all of them; ends with the server."""
    runs = [LevelRun(level=level, rounds=[]) for level in plan.levels]
    asked: list[Ask] = []
    for number in range(plan.rounds):
        for at, run in enumerate(runs):
            asks = plan.turn(number * len(runs) + at, run.level)
            asked += asks
            label = f"{run.level.name}, round {number + 1} of {plan.rounds}"
            print(f"{label}: {len(asks)} requests …", file=sys.stderr)
            with Bar("requests") as bar:
                made = await run_load(
                    plan.target, asks, run.level, warmup=plan.warmup, seed=plan.seed + number, on_end=bar.show
                )
            run.rounds.append(made)
            if made.ended is not None:
                return [run for run in runs if run.rounds], asked
    return runs, asked


def summarize(name: str, rounds: Sequence[Round], slo: Mapping[str, float]) -> Result:
    """Rates of each round, and the times of each request that succeeded."""
    rates_of = {
        "output_tokens_per_s": (lambda timing: timing.output_tokens, "tok/s"),
        "total_tokens_per_s": (lambda timing: timing.output_tokens + timing.prompt_tokens, "tok/s"),
        "requests_per_s": (lambda timing: 1, "req/s"),
        **({"goodput_per_s": (lambda timing: keeps(timing, slo), "req/s")} if slo else {}),
    }
    measures = {
        rate: of_rounds([_rate(round_, of) for round_ in rounds], unit, "higher")
        for rate, (of, unit) in rates_of.items()
    }
    times: dict[str, Callable[[Timing], list[float | None]]] = {
        "ttft_ms": lambda timing: [timing.ttft_s],
        "itl_ms": lambda timing: list(timing.gaps_s),
        "tpot_ms": lambda timing: [timing.tpot_s],
        "e2e_ms": lambda timing: [timing.e2e_s],
    }
    for measure_name, of in times.items():
        measures[measure_name] = Measure(
            unit="ms",
            better="lower",
            rounds=[
                [[1000 * seconds for seconds in of(timing) if seconds is not None] for timing in round_.good]
                for round_ in rounds
            ],
        )
    good = [timing for round_ in rounds for timing in round_.good]
    sent = sum(len(round_.timings) for round_ in rounds)
    counted: dict[str, Any] = {
        "requests": sent,
        "failed": sent - len(good),
        "not_sent": sum(round_.planned - len(round_.timings) for round_ in rounds),
        "errors": sorted({error for round_ in rounds for error in round_.errors})[:5],
        "ended": next((round_.ended for round_ in rounds if round_.ended), None),
        "wall_s": round(sum(round_.wall_s for round_ in rounds), 3),
        "input_tokens": sum(timing.prompt_tokens for timing in good),
        "output_tokens": sum(timing.output_tokens for timing in good),
        "cached_tokens": sum(timing.cached_tokens for timing in good),
    }
    return Result(name=name, measures=measures, counts=counted)


async def _facts_and_quality(target: Target, *, is_asked: bool) -> tuple[ServerFacts, dict[str, Any] | None]:
    timeout = aiohttp.ClientTimeout(total=target.timeout_s)
    if not is_asked:
        return ServerFacts(server={"url": target.url}), None
    async with aiohttp.ClientSession(timeout=timeout) as session:
        facts = await ask_facts(session, target)
        return facts, await take_quality(ServerAnswerer(session, target), facts.context_tokens)


def _model(name: str, location: Path | None, *, is_asked: bool) -> dict[str, Any]:
    return describe_model(name, location) if is_asked else {"name": name}


def _prompts(asked: Sequence[Ask], runs: Sequence[LevelRun]) -> dict[str, Any]:
    good = [timing for run in runs for round_ in run.rounds for timing in round_.good]
    return {
        "sha256": sha256_of(asked),
        "prompt_tokens": histogram([timing.prompt_tokens for timing in good]),
        "output_tokens": histogram([timing.output_tokens for timing in good]),
    }


def _failures(runs: Sequence[LevelRun]) -> list[str]:
    lines = []
    for run in runs:
        for round_ in run.rounds:
            lines += [f"failed, {run.level.name}: {error}" for error in round_.errors[:3]]
            if round_.ended is not None:
                lines.append(f"ended, {run.level.name}: {round_.story}")
    return list(dict.fromkeys(lines))


def _rate(round_: Round, of: Callable[[Timing], float]) -> float:
    return sum(of(timing) for timing in round_.good) / round_.wall_s if round_.wall_s else 0.0


def _rates_row(result: Result) -> list[object]:
    measures, counted = [result.measures.get(name) for name in _RATES], result.counts
    rates = [None if measure is None else measure.percentile(50) for measure in measures]
    return [result.name, counted["requests"], counted["failed"], *rates, counted["cached_tokens"]]


def _times_rows(result: Result) -> list[list[object]]:
    found = {shown: result.measures[name].as_json() for name, shown in _TIMES.items()}
    percents = [f"p{percent}" for percent in PERCENTILES]
    return [
        [result.name, shown, *(times[column] for column in ("mean", *percents, "max"))]
        for shown, times in found.items()
    ]
