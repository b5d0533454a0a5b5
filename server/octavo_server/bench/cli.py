"""The commands of `octavo bench`: which one, and how two of their result files are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo_server.bench.compare import comparison
from octavo_server.bench.latency import bench_latency
from octavo_server.bench.record import read_record
from octavo_server.bench.serve import bench_serve
from octavo_server.bench.startup import bench_startup
from octavo_server.bench.throughput import bench_throughput
from octavo_server.errors import ConfigError
from octavo_server.flags import FlagParser

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_USAGE = """usage: octavo bench serve --model NAME [--url URL] [-c 1,8,32] [-n 32] …
       octavo bench throughput MODEL [-c 1,8,32] …
       octavo bench latency MODEL [--batch-size 8] …
       octavo bench startup MODEL [--cold] …
       octavo bench compare BEFORE.json AFTER.json

serve measures a running OpenAI-compatible server; throughput and latency the engine alone in this process, many batches
or one again and again; startup how long `octavo serve` takes until it answers. --json keeps a run, --compare and compare
set two of them side by side. octavo bench serve --help, and so on, explain the flags."""


def main(argv: Sequence[str]) -> int:
    """Runs one of them; returns the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        raise ConfigError(f"octavo bench {argv[0]!r} is unknown; there are {', '.join(COMMANDS)}")
    return COMMANDS[argv[0]](argv[1:])


def bench_compare(argv: Sequence[str]) -> int:
    """Prints what `--compare` prints, of two runs that are over."""
    values = compare_parser().parse_strictly(argv)
    print(comparison(read_record(values.before), read_record(values.after)))
    return 0


def compare_parser() -> FlagParser:
    parser = FlagParser(prog="octavo bench compare", description="Compare two result files of --json.")
    parser.add_argument("before", metavar="BEFORE.json", help="the run to compare with")
    parser.add_argument("after", metavar="AFTER.json", help="the run whose ratios are printed")
    return parser


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "serve": bench_serve,
    "throughput": bench_throughput,
    "latency": bench_latency,
    "startup": bench_startup,
    "compare": bench_compare,
}
