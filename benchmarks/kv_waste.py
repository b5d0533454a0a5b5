"""How much of the KV cache is reserved and unused on a chat-like mix of lengths: in blocks, and reserving whole contexts.

    python -m benchmarks.kv_waste [--requests 2000] [--block-sizes 16,32,64,256] [--json FILE]

The real scheduler and block pool over a model without arithmetic. The value for blocks is the mean, over the steps, of
what `/metrics` shows as `octavo_kv_waste_ratio`; the other is what the same sequences at the same moments waste if each
reserves `--max-model-len` tokens, as engines without paging do.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random
from statistics import mean

from benchmarks.arguments import count, counts
from benchmarks.record import write_json
from octavo_server.engine.request import FinishReason
from octavo_server.engine.scheduler import SchedulerConfig
from octavo_testing.simulator import Simulator, Traffic

CHAT = Traffic(mean_prompt=161, mean_output=338, max_prompt=1024, arrivals_per_step=0.15, shared=0.0)
"""ShareGPT's means, in tokens (PagedAttention's paper, figure 11). Nothing shared, so that sharing does not flatter it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waste:
    """Means over the steps; 0 to 1."""

    block_size: int
    requests: int
    max_model_len: int
    blocks: float
    contiguous: float


def measure(num_requests: int, *, block_size: int = 16, max_model_len: int = 2048, seed: int = 2) -> Waste:
    """Runs `num_requests` through the scheduler; the same for the same seed."""
    config = SchedulerConfig(max_num_batched_tokens=2048, max_num_seqs=64, max_model_len=max_model_len)
    simulator = Simulator(config, num_blocks=64_000 // block_size, block_size=block_size)
    report = simulator.run(CHAT.requests(num_requests, Random(seed), vocabulary=1000))
    assert report.wrong == 0
    assert report.outcomes[FinishReason.LENGTH] == num_requests
    return Waste(
        block_size=block_size,
        requests=num_requests,
        max_model_len=max_model_len,
        blocks=mean(report.waste),
        contiguous=mean(report.contiguous_waste),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line a block size."""
    values = parser().parse_args(argv)
    rows = [
        measure(values.requests, block_size=size, max_model_len=values.max_model_len, seed=values.seed)
        for size in values.block_sizes
    ]
    print(f"{values.requests} requests, means 161 tokens in and 338 out; share of reserved slots that is unused")
    for row in rows:
        print(
            f"blocks of {row.block_size:>4}: {row.blocks:6.1%}    whole contexts of {row.max_model_len}: {row.contiguous:6.1%}"
        )
    write_json(values.json, "benchmarks.kv_waste", {"results": [asdict(row) for row in rows]})
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.kv_waste", description="Measure the KV cache's waste.")
    made.add_argument("--requests", type=count, default=2000, help="default: %(default)s")
    made.add_argument(
        "--block-sizes", type=counts, default="16,32,64,256", help="tokens in a block (default: %(default)s)"
    )
    made.add_argument("--max-model-len", type=count, default=2048, help="tokens (default: %(default)s)")
    made.add_argument("--seed", type=int, default=2, help="of the lengths (default: %(default)s)")
    made.add_argument("--json", default="", metavar="FILE", help="write the figures there")
    return made


if __name__ == "__main__":
    raise SystemExit(main())
