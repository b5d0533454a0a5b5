"""`octavo bench throughput`: the engine alone, in this process, a row a batch size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from octavo_server.bench.arguments import counts, whole
from octavo_server.bench.engine_runs import BatchRun, engine_record, load_engine, run_batch
from octavo_server.bench.output import Output, add_output_flags
from octavo_server.bench.record import Record, Result
from octavo_server.bench.stats import of_rounds, table
from octavo_server.config import EngineConfig
from octavo_server.flags import FlagParser, add_flags
from octavo_server.progress import Bar

if TYPE_CHECKING:
    from octavo_server.llm import LLM

COMMAND = "bench throughput"
_HEADER = ("batch", "prompt tok", "output tok", "prefill tok/s", "decode tok/s", "output tok/s", "wall s")


def bench_throughput(argv: Sequence[str]) -> int:
    """Runs batches of random token ids, without HTTP, and prints the median of the rounds for each size."""
    values = throughput_parser().parse_strictly(argv)
    output = Output.from_flags(values, COMMAND)
    llm = load_engine(values)
    sizes: list[int] = values.concurrency
    runs = _measure(llm, sizes, values.rounds, values.prompt_tokens, values.max_tokens)
    results = [summarize(size, runs[size]) for size in sizes]
    print(f"{llm.config.model}: {values.prompt_tokens} in, {values.max_tokens} out, engine alone")
    print(table(_HEADER, [_row(result, runs[size][0]) for size, result in zip(sizes, results, strict=True)]))
    workload = {name: getattr(values, name) for name in ("concurrency", "rounds", "prompt_tokens", "max_tokens")}
    title = f"{llm.config.model}, engine alone"
    if output.wants_record:
        every = [run for size in sizes for run in runs[size]]
        output.give(engine_record(llm, COMMAND, workload, results, every, output.notes), title)
    else:
        output.give(Record(command=COMMAND, workload=workload, results=results), title)
    return 0


def summarize(size: int, rounds: Sequence[BatchRun]) -> Result:
    """Rates of each round."""
    return Result(
        name=f"batch {size}",
        measures={
            "output_tokens_per_s": of_rounds([run.output_tokens / run.wall_s for run in rounds], "tok/s", "higher"),
            "prefill_tokens_per_s": of_rounds([run.prompt_tokens / run.first_s for run in rounds], "tok/s", "higher"),
            "decode_tokens_per_s": of_rounds([run.decode_tokens_per_s for run in rounds], "tok/s", "higher"),
            "wall_s": of_rounds([run.wall_s for run in rounds], "s", "lower"),
        },
        counts={
            "batch": size,
            "prompt_tokens": sum(run.prompt_tokens for run in rounds),
            "output_tokens": sum(run.output_tokens for run in rounds),
        },
    )


def throughput_parser() -> FlagParser:
    parser = FlagParser(prog="octavo bench throughput", description="Measure the engine alone, in this process.")
    add_flags(parser, EngineConfig)
    add = parser.add_argument_group("batches").add_argument
    add(
        "-c",
        "--concurrency",
        type=counts("--concurrency"),
        default=[1, 8, 32],
        help="such as 8 or 1,8,32 (the default)",
    )
    add("--rounds", type=whole("--rounds"), default=3, help="of all sizes in turn (default: %(default)s)")
    add("--prompt-tokens", type=whole("--prompt-tokens"), default=128, help="default: %(default)s")
    add("--max-tokens", type=whole("--max-tokens"), default=64, help="tokens of an answer (default: %(default)s)")
    add_output_flags(parser)
    return parser


def _measure(
    llm: LLM, sizes: Sequence[int], rounds: int, prompt_tokens: int, max_tokens: int
) -> dict[int, list[BatchRun]]:
    runs: dict[int, list[BatchRun]] = {size: [] for size in sizes}
    total = (rounds + 1) * len(sizes)
    with Bar("batches") as bar:
        for turn in range(total):
            size = sizes[turn % len(sizes)]
            seed = llm.config.seed + 1000 * turn + size
            run = run_batch(llm, size, prompt_tokens=prompt_tokens, max_tokens=max_tokens, seed=seed)
            # A round before the first is thrown away: it touches memory and starts threads.
            if turn >= len(sizes):
                runs[size].append(run)
            bar.show(turn + 1, total)
    return runs


def _row(result: Result, one: BatchRun) -> list[object]:
    names = ("prefill_tokens_per_s", "decode_tokens_per_s", "output_tokens_per_s", "wall_s")
    medians = [result.measures[name].percentile(50) for name in names]
    wall_s = medians.pop()
    return [result.counts["batch"], one.prompt_tokens, one.output_tokens, *medians, f"{wall_s:.3f}"]
