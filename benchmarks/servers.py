"""Our server beside llama.cpp's and transformers' on the same model, through HTTP, in one run: what the ratios are.

    python -m benchmarks.servers MODEL.gguf [--peers llama.cpp,transformers] [-c 1,8,32] [--rounds 3] [--json FILE]

Streamed chat by closed-loop clients. All servers are up; in each round each is asked the same new prompts, in turn,
while the others are stopped (SIGSTOP), so that nothing that polls takes from who is measured. A busy machine moves
all of them, hence turns: a ratio is the median of the rounds' own. Answers have their full length everywhere.

llama.cpp is the package `xllamacpp` as it comes, 8 slots; transformers is `transformers serve --continuous-batching` on
the dequantised weights. Both are installed on first use, into ~/.cache/octavo. The clients run on the same processors.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import aiohttp

from benchmarks.arguments import count, counts
from benchmarks.peer_servers import PEERS, Ours, Running, Setup
from octavo_server.bench.datasets import Ask, Dataset, sha256_of
from octavo_server.bench.load import Level, Round, run_load
from octavo_server.bench.record import Record, Result, describe_model, write_record
from octavo_server.bench.serve import summarize
from octavo_server.bench.server_facts import ask_facts
from octavo_server.bench.stats import histogram, table

OURS = Ours.name
BARS = {
    ("llama.cpp", 1): 2.0,
    ("llama.cpp", 8): 4.0,
    ("llama.cpp", 32): 4.0,
    ("transformers", 8): 4.0,
    ("transformers", 32): 4.0,
}
"""Our output tokens a second over theirs, for SmolLM2-135M Q4_1."""
NO_WORSE_THAN = "llama.cpp"
"""Whose TTFT p50 and ITL p50 ours may not exceed."""


class Server(Protocol):
    """One that is starting."""

    def wait(self) -> Running: ...

    def close(self) -> None: ...


@dataclass(slots=True, kw_only=True)
class Rounds:
    """What each server gave at each number of clients."""

    of: dict[tuple[str, int], list[Round]] = field(default_factory=dict)
    asked: list[Ask] = field(default_factory=list)

    def result(self, server: str, clients: int) -> Result:
        return summarize(f"{server}, {clients} clients", self.of[server, clients], {})

    def ratio(self, peer: str, clients: int) -> float:
        """Our output tokens a second over the peer's: the median of the rounds' own ratios."""
        ours, theirs = (self.rates(server, clients) for server in (OURS, peer))
        return median(one / other for one, other in zip(ours, theirs, strict=True))

    def rates(self, server: str, clients: int) -> list[float]:
        return self.result(server, clients).measures["output_tokens_per_s"].by_round

    def p50(self, server: str, clients: int, measure: str) -> float:
        """Milliseconds, over all rounds."""
        return self.result(server, clients).measures[measure].percentile(50) or 0.0


def measure(servers: Sequence[Running], clients: Sequence[int], shape: Dataset, requests: int, rounds: int) -> Rounds:
    """Turns of all servers.

    Raises:
        SystemExit: a request failed, so that there is nothing to compare.
    """
    found = Rounds(of={(server.name, size): [] for server in servers for size in clients})
    for server in servers:
        server.pause()
    for number in range(rounds):
        for size in clients:
            asks = shape.asks(max(requests, size), seed=1000 * number + size)
            found.asked += asks
            for server in servers:
                server.go_on()
                # The first of the first turn is a warm-up, of another prompt.
                warm_up = shape.asks(1, seed=-1 - size) if number == 0 else []
                made = asyncio.run(
                    run_load(server.target, [*warm_up, *asks], Level(concurrency=size), warmup=len(warm_up))
                )
                server.pause()
                if made.errors or made.ended:
                    raise SystemExit(f"{server.name}, {size} clients: {made.ended or made.errors[0]}")
                found.of[server.name, size].append(made)
                rate = sum(timing.output_tokens for timing in made.good) / made.wall_s
                print(f"round {number + 1}, {size} clients, {server.name}: {rate:.1f} tok/s", file=sys.stderr)
    return found


def judge(found: Rounds, peers: Sequence[str], clients: Sequence[int]) -> list[dict[str, Any]]:
    """One verdict a peer and number of clients."""
    verdicts = []
    for peer in peers:
        for size in clients:
            bar = BARS.get((peer, size))
            times = {
                name: {server: found.p50(server, size, name) for server in (OURS, peer)}
                for name in ("ttft_ms", "itl_ms")
            }
            no_worse = all(pair[OURS] <= pair[peer] for pair in times.values())
            ratio = found.ratio(peer, size)
            missed = bar is not None and (ratio < bar or (peer == NO_WORSE_THAN and not no_worse))
            verdicts.append(
                {
                    "peer": peer,
                    "clients": size,
                    "ratio": ratio,
                    "bar": bar,
                    **times,
                    "no_worse": no_worse,
                    "missed": missed,
                }
            )
    return verdicts


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables; 1 where a bar is missed."""
    values = parser().parse_args(argv)
    setup = Setup(
        model=Path(values.model).resolve(),
        threads=values.threads,
        context=values.context,
        clients=max(values.concurrency),
        quantization=values.quantization,
    )
    shape = Dataset(prompt_tokens=values.prompt_tokens, max_tokens=values.max_tokens)
    with ExitStack() as stack:
        running = _start(stack, setup, values.peers)
        facts = {server.name: asyncio.run(_facts(server)) for server in running}
        found = measure(running, values.concurrency, shape, values.requests, values.rounds)
        for server in running:
            server.go_on()
    verdicts = judge(found, values.peers, values.concurrency)
    _print(found, values, verdicts)
    write_record(values.json, _record(found, values, facts, verdicts))
    return 1 if any(verdict["missed"] for verdict in verdicts) else 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.servers", description="Our server beside others.")
    made.add_argument("model", help="a .gguf file")
    made.add_argument("--peers", type=_peers, default=list(PEERS), help=f"of {', '.join(PEERS)} (default: all)")
    made.add_argument("-c", "--concurrency", type=counts, default=[1, 8, 32], help="clients (default: 1,8,32)")
    made.add_argument("-n", "--requests", type=count, default=8, help="of each turn, at least (default: %(default)s)")
    made.add_argument("--rounds", type=count, default=3, help="default: %(default)s")
    made.add_argument(
        "--prompt-tokens",
        type=count,
        default=40,
        help="words of a prompt: some three tokens each (default: %(default)s)",
    )
    made.add_argument("--max-tokens", type=count, default=64, help="tokens of an answer (default: %(default)s)")
    made.add_argument(
        "--context", type=count, default=1024, help="tokens of a request and its answer (default: %(default)s)"
    )
    made.add_argument("--threads", type=count, default=len(os.sched_getaffinity(0)), help="of each (default: all)")
    made.add_argument("--quantization", default="int4", help="ours, as of octavo serve (default: %(default)s)")
    made.add_argument("--json", default="", metavar="FILE", help="write the figures there")
    return made


def _start(stack: ExitStack, setup: Setup, peers: Sequence[str]) -> list[Running]:
    running = []
    for kind in (Ours, *(PEERS[name] for name in peers)):
        print(f"starting {kind.name} …", file=sys.stderr)
        server: Server = kind(setup)
        stack.callback(server.close)
        running.append(server.wait())
    return running


async def _facts(server: Running) -> dict[str, Any]:
    timeout = aiohttp.ClientTimeout(total=server.target.timeout_s)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        told = await ask_facts(session, server.target)
    engine, resolved = dict(told.engine), dict(told.resolved)
    return {"server": dict(told.server), "about": dict(server.about), "engine": engine, "resolved": resolved}


def _print(found: Rounds, values: argparse.Namespace, verdicts: Sequence[dict[str, Any]]) -> None:
    print(
        f"{Path(values.model).name}: {values.prompt_tokens} words in, {values.max_tokens} tokens out, "
        f"{values.rounds} rounds, {values.threads} threads each, load average {os.getloadavg()[0]:.1f}"
    )
    rows = []
    for server, size in found.of:
        rates = found.rates(server, size)
        times = [round(found.p50(server, size, name), 1) for name in ("ttft_ms", "itl_ms", "tpot_ms")]
        rows.append((server, size, round(median(rates), 1), round(min(rates), 1), round(max(rates), 1), *times))
    print(table(("server", "clients", "tok/s", "slowest", "fastest", "TTFT p50 ms", "ITL p50", "TPOT p50"), rows))
    for verdict in verdicts:
        bar = (
            ""
            if verdict["bar"] is None
            else f", bar {verdict['bar']:g}x {'MISSED' if verdict['missed'] else 'reached'}"
        )
        worse = "" if verdict["no_worse"] else "; TTFT or ITL p50 is worse"
        print(f"to {verdict['peer']} at {verdict['clients']}: {verdict['ratio']:.2f}x{worse}{bar}")


def _record(
    found: Rounds, values: argparse.Namespace, facts: dict[str, Any], verdicts: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    workload = {
        name: getattr(values, name)
        for name in ("concurrency", "requests", "rounds", "prompt_tokens", "max_tokens", "context", "threads")
    }
    good = [timing for rounds in found.of.values() for round_ in rounds for timing in round_.good]
    record = Record(
        command="benchmarks.servers",
        workload=workload,
        results=[found.result(server, size) for server, size in found.of],
        model=describe_model(Path(values.model).name, Path(values.model)),
        engine=facts[OURS]["engine"],
        resolved=facts[OURS]["resolved"],
        server={name: told["server"] | told["about"] for name, told in facts.items() if name != OURS},
        prompts={
            "sha256": sha256_of(found.asked),
            "prompt_tokens": histogram([timing.prompt_tokens for timing in good]),
            "output_tokens": histogram([timing.output_tokens for timing in good]),
        },
    )
    return {
        **record.as_json(),
        "verdicts": list(verdicts),
        "dataset": asdict(Dataset(prompt_tokens=values.prompt_tokens, max_tokens=values.max_tokens)),
    }


def _peers(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in PEERS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PEERS)}")
    return names


if __name__ == "__main__":
    raise SystemExit(main())
