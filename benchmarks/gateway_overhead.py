"""What the gateway adds to a stream: the time to its first event and to its end, through it and directly, in one run.

    python -m benchmarks.gateway_overhead [--streams 100] [--requests 600] [--rounds 5] [--json FILE]

A fake replica that costs next to nothing sends each stream's events at a fixed pace. Each round measures it directly and
through the gateway, in turn; a figure is the median of the rounds' own. Load, gateway and replica are processes of their
own on the same machine, so what the load itself takes meets both alike. The gateway is as the chart has it: audit lines
are written (to /dev/null), usage is asked for and taken out of each stream, conversations keep to their replica.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import aiohttp

from benchmarks.arguments import amount, count
from benchmarks.record import write_json

ADDED_P50_MS, ADDED_P99_MS, MEMORY_MIB = 2.0, 10.0, 100.0
"""The bars: what the gateway may add to the first event of 100 streams, and take."""
SIDES = ("direct", "gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """Of one round on one side, in milliseconds."""

    first_p50: float
    first_p99: float
    whole_p50: float
    whole_p99: float
    requests_per_s: float


def latencies(firsts: Sequence[float], wholes: Sequence[float], wall_s: float) -> Latencies:
    """From seconds of each request."""
    return Latencies(
        first_p50=1000 * quantile(firsts, 0.5),
        first_p99=1000 * quantile(firsts, 0.99),
        whole_p50=1000 * quantile(wholes, 0.5),
        whole_p99=1000 * quantile(wholes, 0.99),
        requests_per_s=len(wholes) / wall_s,
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def run_load(url: str, *, streams: int, requests: int, spread_s: float) -> Latencies:
    """So many requests, so many at once; raises RuntimeError where one fails.

    Their clients begin one after the other over `spread_s`, so that they do not all ask at the same moments for ever.
    """
    firsts: list[float] = []
    wholes: list[float] = []
    numbers = iter(range(requests))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=300)) as session:

        async def client(place: int) -> None:
            await asyncio.sleep(spread_s * place / streams)
            for number in numbers:
                first, whole = await _ask(session, url, number)
                firsts.append(first)
                wholes.append(whole)

        began = time.perf_counter()
        await asyncio.gather(*(client(place) for place in range(streams)))
        return latencies(firsts, wholes, time.perf_counter() - began)


async def _ask(session: aiohttp.ClientSession, url: str, number: int) -> tuple[float, float]:
    body = {
        "model": "model",
        "stream": True,
        "messages": [{"role": "user", "content": f"question {number}" + " x" * 200}],
    }
    began = time.perf_counter()
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {(await response.text())[:200]}")
        await response.content.readline()
        first = time.perf_counter() - began
        last = b""
        async for line in response.content:
            last = line if line.strip() else last
    if last.strip() != b"data: [DONE]":
        raise RuntimeError("a stream ended early")
    return first, time.perf_counter() - began


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, int]]:
    """One of the two servers; its URL and process id."""
    command = [sys.executable, "-m", "benchmarks.gateway_processes", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    with process, process.stdout, process.stdin:
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError(f"{' '.join(command)} ended with status {process.wait()}")
        yield f"http://127.0.0.1:{port}", process.pid


def most_memory_mib(pid: int) -> float:
    """The largest resident set that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def cpu_seconds(pid: int) -> float:
    """What a process has used of a processor, which says something on a busy machine too."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def added(rounds: dict[str, list[Latencies]]) -> dict[str, float]:
    """What the gateway adds, and the ratio of the whole: medians of the rounds' own."""
    pairs = list(zip(rounds["gateway"], rounds["direct"], strict=True))
    return {
        "added_first_p50_ms": median(ours.first_p50 - bare.first_p50 for ours, bare in pairs),
        "added_first_p99_ms": median(ours.first_p99 - bare.first_p99 for ours, bare in pairs),
        "added_whole_p50_ms": median(ours.whole_p50 - bare.whole_p50 for ours, bare in pairs),
        "whole_p50_ratio": median(ours.whole_p50 / bare.whole_p50 for ours, bare in pairs),
        "requests_per_s_ratio": median(ours.requests_per_s / bare.requests_per_s for ours, bare in pairs),
    }


def measure(values: argparse.Namespace) -> tuple[dict[str, list[Latencies]], dict[str, float]]:
    """The rounds of each side, and what the gateway's process took."""
    rounds: dict[str, list[Latencies]] = {side: [] for side in SIDES}
    with (
        serving("replica", str(values.events), str(values.interval_ms / 1000)) as (direct, _),
        serving("gateway", direct) as (through, pid),
    ):
        urls = dict(zip(SIDES, (direct, through), strict=True))
        spread_s = values.events * values.interval_ms / 1000
        for side in SIDES:
            # Not counted: connections are opened, code is warm.
            asyncio.run(run_load(urls[side], streams=values.streams, requests=values.streams, spread_s=spread_s))
        before_s = cpu_seconds(pid)
        for number in range(values.rounds):
            for side in SIDES:
                found = asyncio.run(
                    run_load(urls[side], streams=values.streams, requests=values.requests, spread_s=spread_s)
                )
                rounds[side].append(found)
                told = f"first event p50 {found.first_p50:.1f} ms, p99 {found.first_p99:.1f} ms"
                print(f"round {number + 1} of {values.rounds}, {side}: {told}", file=sys.stderr)
        cpu_ms = 1000 * (cpu_seconds(pid) - before_s) / (values.rounds * values.requests)
        return rounds, {"gateway_cpu_ms_per_request": cpu_ms, "gateway_memory_mib": most_memory_mib(pid)}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.gateway_overhead", description=(__doc__ or "").split("\n")[0]
    )
    made.add_argument("--streams", type=count, default=100, help="streams at once (%(default)s)")
    made.add_argument("--requests", type=count, default=600, help="requests of a round and side (%(default)s)")
    made.add_argument("--rounds", type=count, default=5, help="rounds (%(default)s)")
    made.add_argument("--events", type=count, default=64, help="events of a stream (%(default)s)")
    made.add_argument("--interval-ms", type=amount, default=30.0, help="milliseconds between two of them (%(default)s)")
    made.add_argument("--json", default="", metavar="FILE", help="where the figures go")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what was found; 1 where a bar is missed."""
    values = parser().parse_args(argv)
    rounds, taken = measure(values)
    found = {**added(rounds), **taken}
    bars = {
        "added_first_p50_ms": ADDED_P50_MS,
        "added_first_p99_ms": ADDED_P99_MS,
        "gateway_memory_mib": MEMORY_MIB,
    }
    for name, value in found.items():
        bar = f"  (bar {bars[name]:g})" if name in bars else ""
        print(f"{name:24} {value:9.3f}{bar}")
    settings = {name: value for name, value in vars(values).items() if name != "json"}
    details = {side: [asdict(each) for each in each_side] for side, each_side in rounds.items()}
    write_json(
        values.json,
        "python -m benchmarks.gateway_overhead",
        {"settings": settings, "found": found, "bars": bars, "rounds": details},
    )
    return int(any(found[name] >= bar for name, bar in bars.items()))


if __name__ == "__main__":
    sys.exit(main())
