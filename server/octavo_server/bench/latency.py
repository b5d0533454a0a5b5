"""`octavo bench latency`: how long one batch of fixed lengths takes in the engine alone, again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo_server.bench.arguments import whole
from octavo_server.bench.engine_runs import BatchRun, engine_record, load_engine, run_batch
from octavo_server.bench.output import Output, add_output_flags
from octavo_server.bench.record import Record, Result
from octavo_server.bench.stats import PERCENTILES, of_rounds, table
from octavo_server.config import EngineConfig
from octavo_server.flags import FlagParser, add_flags
from octavo_server.progress import Bar

if TYPE_CHECKING:
    from octavo_server.llm import LLM

COMMAND = "bench latency"
_HEADER = ("ms", "mean", *(f"p{percent}" for percent in PERCENTILES), "max")
_OF_WORKLOAD = ("batch_size", "prompt_tokens", "max_tokens", "warmup", "iterations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What is repeated."""

    size: int
    prompt_tokens: int
    max_tokens: int


def bench_latency(argv: Sequence[str]) -> int:
    """Prints the percentiles of the whole, of the first token and of each further one."""
    values = latency_parser().parse_strictly(argv)
    output = Output.from_flags(values, COMMAND)
    llm = load_engine(values)
    batch = Batch(size=values.batch_size, prompt_tokens=values.prompt_tokens, max_tokens=values.max_tokens)
    runs = _measure(llm, batch, values.warmup, values.iterations)
    result = summarize(batch, runs)
    print(f"{llm.config.model}: a batch of {batch.size}, {batch.prompt_tokens} in, {batch.max_tokens} out, "
          f"{len(runs)} times, engine alone")  # fmt: skip
    print(table(_HEADER, [_row(name, result) for name in result.measures]))
    workload = {name: getattr(values, name) for name in _OF_WORKLOAD}
    title = f"{llm.config.model}, a batch of {batch.size}"
    if output.wants_record:
        output.give(engine_record(llm, COMMAND, workload, [result], runs, output.notes), title)
    else:
        output.give(Record(command=COMMAND, workload=workload, results=[result]), title)
    return 0


def summarize(batch: Batch, runs: Sequence[BatchRun]) -> Result:
    """Times of each iteration."""
    further = [1000 * (run.wall_s - run.first_s) / max(1, batch.max_tokens - 1) for run in runs]
    return Result(
        name=f"batch {batch.size}",
        measures={
            "e2e_ms": of_rounds([1000 * run.wall_s for run in runs], "ms", "lower"),
            "ttft_ms": of_rounds([1000 * run.first_s for run in runs], "ms", "lower"),
            **({"tpot_ms": of_rounds(further, "ms", "lower")} if batch.max_tokens > 1 else {}),
        },
        counts={"batch": batch.size, "output_tokens": sum(run.output_tokens for run in runs)},
    )


def latency_parser() -> FlagParser:
    parser = FlagParser(prog="octavo bench latency", description="Time one batch in the engine alone, again and again.")
    add_flags(parser, EngineConfig)
    add = parser.add_argument_group("batch").add_argument
    add("--batch-size", type=whole("--batch-size"), default=8, help="prompts at once (default: %(default)s)")
    add("--prompt-tokens", "--input-len", type=whole("--prompt-tokens"), default=128, help="default: %(default)s")
    add("--max-tokens", "--output-len", type=whole("--max-tokens"), default=64, help="default: %(default)s")
    add("--warmup", "--num-iters-warmup", type=whole("--warmup", 0), default=2, help="untimed (default: %(default)s)")
    add("--iterations", "--num-iters", type=whole("--iterations"), default=10, help="timed (default: %(default)s)")
    add_output_flags(parser)
    return parser


def _measure(llm: LLM, batch: Batch, warmup: int, iterations: int) -> list[BatchRun]:
    runs = []
    with Bar("iterations") as bar:
        for number in range(warmup + iterations):
            run = run_batch(
                llm,
                batch.size,
                prompt_tokens=batch.prompt_tokens,
                max_tokens=batch.max_tokens,
                # Other prompts each time, or the prefix cache would answer.
                seed=llm.config.seed + number,
            )
            bar.show(number + 1, warmup + iterations)
            if number >= warmup:
                runs.append(run)
    return runs


def _row(name: str, result: Result) -> list[object]:
    found = result.measures[name].as_json()
    return [name.removesuffix("_ms"), found["mean"], *(found[f"p{percent}"] for percent in PERCENTILES), found["max"]]
