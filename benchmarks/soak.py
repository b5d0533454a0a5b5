"""Half an hour of everything at once: does the server keep its memory, its blocks and its books?

    python -m benchmarks.soak [MODEL] [--minutes 30] [--clients 8] [--json FILE] [-- flags of octavo serve]

Starts `octavo serve`, by default with a tiny random model, and sends chat and completions, streamed and not, short and
long, with n, stop strings, log-probabilities and penalties, what else the server serves, bad requests, and requests
whose clients leave: within the body, before the answer, in the middle of a stream. In rounds: a phase in which a quarter
leaves, then a short one in which nobody does. After each phase

- nothing runs or waits, no block is held, and KV pressure is 0, a second after the last client went;
- `/metrics` equals what the clients know (see ledger.py);
- no answer was a 5xx, no stream ended with an error, no ERROR stands in the log, `/health` was 200 throughout.

At the end: the server's memory (all its processes) grew by less than 1 MB a minute after the first five minutes, by least
squares; a run under ten minutes is too short to say so, and does not. Exit status 1 where anything was found.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import linear_regression
from typing import Any

import aiohttp

from benchmarks.arguments import amount, count
from benchmarks.ledger import Counts, audit, read_counts
from benchmarks.record import write_json
from benchmarks.soak_clients import Clients
from octavo_server.bench.server_process import ServerProcess, serving

NAME = "soak"
WARM_UP_S, LEAST_S = 300.0, 600.0
"""Memory is judged after the first, where the whole run takes at least the second."""
MAX_SLOPE_MB_PER_MINUTE = 1.0
ABORT_SHARE, MIXED_SHARE = 0.25, 0.8
"""Of requests in the mixed phase, and of a round's time that it takes: 20 % of all requests are aborted."""
SETTLE_S = 1.0
AT_REST = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
           "octavo_kv_pressure_ratio", "octavo_kv_waste_ratio")  # fmt: skip
TINY_FLAGS = ("--num-gpu-blocks-override", "80", "--max-num-batched-tokens", "256")
"""Few blocks, so that eight clients preempt each other."""


@dataclass(slots=True, kw_only=True)
class Report:
    """What a soak showed; `problems` is empty where all was well."""

    seconds: float = 0.0
    rounds: int = 0
    requests: int = 0
    outputs: dict[str, int] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    not_served: list[str] = field(default_factory=list)
    preemptions: int = 0
    slowest_settling_s: float = 0.0
    memory_mb: list[tuple[float, float]] = field(default_factory=list)
    """Second of the run, and MB of all processes of the server."""
    slope_mb_per_minute: float | None = None
    """None where the run was too short."""
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Soak:
    """One run against one server."""

    server: ServerProcess
    clients: Clients
    session: aiohttp.ClientSession
    report: Report = field(default_factory=Report)

    async def run(self, seconds: float, num_clients: int, round_s: float) -> Report:
        """Rounds until the time is over."""
        self.report.not_served = await self.clients.probe()
        started = time.monotonic()
        watching = asyncio.create_task(self._watch(started))
        try:
            before = await self._counts()
            while (left := seconds - (time.monotonic() - started)) > 1:
                length = min(round_s, left)
                for share, abort_share in ((MIXED_SHARE, ABORT_SHARE), (1 - MIXED_SHARE, 0.0)):
                    before = await self._phase(before, num_clients, share * length, abort_share)
                self.report.rounds += 1
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        self._finish(time.monotonic() - started)
        return self.report

    async def _phase(self, before: Counts, num_clients: int, seconds: float, abort_share: float) -> Counts:
        ledger = await self.clients.run(num_clients, seconds, abort_share)
        await self._settle()
        after = await self._counts()
        moved = after.since(before)
        self._note([f"round {self.report.rounds + 1}: {line}" for line in audit(ledger, moved)])
        self.report.requests += moved.requests
        self.report.preemptions += moved.preemptions
        for reason, number in moved.outcomes.items():
            self.report.outputs[reason] = self.report.outputs.get(reason, 0) + number
        return after

    async def _settle(self) -> None:
        """Waits for rest; what is not at rest after a second is a problem."""
        started = time.monotonic()
        while busy := await self._busy():
            if time.monotonic() - started > SETTLE_S:
                self._note([f"round {self.report.rounds + 1}: after {SETTLE_S:g} s without clients {busy}"])
                return
            await asyncio.sleep(0.02)
        self.report.slowest_settling_s = max(self.report.slowest_settling_s, round(time.monotonic() - started, 3))

    async def _busy(self) -> str:
        gauges = dict(line.rsplit(" ", 1) for line in (await self._metrics()).splitlines() if line[:1] != "#")
        found = {name.split("{")[0]: float(value) for name, value in gauges.items() if name.startswith(AT_REST)}
        if len(found) != len(AT_REST):
            return f"only {sorted(found)} is shown"
        return ", ".join(f"{name} is {value:g}" for name, value in found.items() if value)

    async def _metrics(self) -> str:
        async with self.session.get(self.clients.url + "/metrics") as response:
            return await response.text()

    async def _counts(self) -> Counts:
        async with self.session.get(self.clients.url + "/load") as response:
            load = await response.json()
        return read_counts(await self._metrics(), load["requests_total"])

    async def _watch(self, started: float) -> None:
        """Memory and health, once a second."""
        while True:
            now = round(time.monotonic() - started, 1)
            self.report.memory_mb.append((now, round(self.server.rss_bytes() / 1e6, 2)))
            try:
                async with self.session.get(self.clients.url + "/health") as response:
                    if response.status != 200:
                        self._note([f"/health is {response.status}"])
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self._note([f"/health: {type(error).__name__}"])
            await asyncio.sleep(1)

    def _note(self, problems: Sequence[str]) -> None:
        for problem in problems:
            print(f"problem: {problem}", file=sys.stderr, flush=True)
        self.report.problems += problems

    def _finish(self, seconds: float) -> None:
        report = self.report
        report.seconds = round(seconds, 1)
        report.sent = dict(sorted(self.clients.sent.items()))
        self._note([f"{number} times {problem}" for problem, number in self.clients.problems.items()])
        self._note([f"the log says: {line}"[:300] for line in self.server.errors[:5]])
        if self.server.child.poll() is not None:
            self._note([f"the server ended with status {self.server.child.returncode}"])
        report.slope_mb_per_minute = slope_mb_per_minute(report.memory_mb) if seconds >= LEAST_S else None
        if report.slope_mb_per_minute is not None and report.slope_mb_per_minute >= MAX_SLOPE_MB_PER_MINUTE:
            self._note([f"memory grows by {report.slope_mb_per_minute:.2f} MB a minute"])


def slope_mb_per_minute(memory_mb: Sequence[tuple[float, float]], warm_up_s: float = WARM_UP_S) -> float:
    """Least squares over the samples after the warm-up."""
    late = [(second / 60, size) for second, size in memory_mb if second >= warm_up_s]
    return linear_regression([minute for minute, _ in late], [size for _, size in late]).slope


async def soak(server: ServerProcess, values: argparse.Namespace) -> Report:
    """One run as the flags say."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=300)) as session:
        clients = Clients(
            session=session,
            url=server.url,
            model=NAME,
            rng=Random(values.seed),
            think_s=values.think_ms / 1000,
            abort_tokens=values.abort_tokens,
        )
        run = Soak(server=server, clients=clients, session=session)
        return await run.run(values.minutes * 60, values.clients, values.round_s)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, prints what it showed; 1 where there were problems."""
    given = list(sys.argv[1:] if argv is None else argv)
    at = given.index("--") if "--" in given else len(given)
    own, flags = given[:at], given[at + 1 :]
    values = parser().parse_args(own)
    with ExitStack() as stack:
        model = values.model
        if not model:
            from octavo_testing.server import a_tiny_model

            model = str(a_tiny_model(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "tiny"))
            flags = [*TINY_FLAGS, *flags]
        server = stack.enter_context(serving([model, "--served-model-name", NAME, *flags]))
        report = asyncio.run(soak(server, values))
        if (status := server.stop()) != 0:
            report.problems.append(f"the server ended with status {status} after SIGTERM")
    print(summary(report))
    write_json(values.json, "benchmarks.soak", {"model": values.model or "tiny random Llama", **as_json(report)})
    return 1 if report.problems else 0


def parser() -> argparse.ArgumentParser:
    """The flags before `--`."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description="Mixed load for half an hour; flags of octavo serve after --."
    )
    made.add_argument("model", nargs="?", default="", help="as of octavo serve (default: a tiny random model)")
    made.add_argument("--minutes", type=amount, default=30.0, help="default: %(default)s")
    made.add_argument("--clients", type=count, default=8, help="default: %(default)s")
    made.add_argument("--think-ms", type=amount, default=50.0, help="mean pause of a client (default: %(default)s)")
    made.add_argument("--round-s", type=amount, default=60.0, help="seconds between two audits (default: %(default)s)")
    made.add_argument("--abort-tokens", type=count, default=280, help="output that aborted requests ask for")
    made.add_argument("--seed", type=int, default=0, help="of the traffic (default: 0)")
    made.add_argument("--json", default="", metavar="FILE", help="write the report there")
    return made


def summary(report: Report) -> str:
    """The report in a few lines."""
    sizes = [size for _, size in report.memory_mb] or [0.0]
    slope = report.slope_mb_per_minute
    grown = "too short a run to judge its slope" if slope is None else f"slope {slope:+.3f} MB a minute"
    return "\n".join(
        [
            f"{report.seconds:.0f} s, {report.rounds} rounds, {report.requests:,} requests; outputs "
            + ", ".join(f"{reason} {count:,}" for reason, count in sorted(report.outputs.items())),
            "sent: " + ", ".join(f"{name} {count:,}" for name, count in report.sent.items()),
            "not served here: " + (", ".join(report.not_served) or "nothing"),
            f"preemptions {report.preemptions:,}; at rest {report.slowest_settling_s:.2f} s after a phase at the latest",
            f"memory {sizes[0]:.0f} MB at first, {max(sizes):.0f} at most, {sizes[-1]:.0f} at last; {grown}",
            *(f"PROBLEM: {problem}" for problem in report.problems),
            f"{len(report.problems)} problems",
        ]
    )


def as_json(report: Report) -> dict[str, Any]:
    """The report, its memory a sample every ten seconds."""
    values = {name: getattr(report, name) for name in Report.__dataclass_fields__}
    return {**values, "memory_mb": report.memory_mb[::10]}


if __name__ == "__main__":
    raise SystemExit(main())
