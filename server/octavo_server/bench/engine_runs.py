"""What `bench throughput` and `bench latency` share: an engine of the flags, and what a record says of it."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo_server.bench.answerers import EngineAnswerer
from octavo_server.bench.datasets import Ask, sha256_of
from octavo_server.bench.prompts import PromptShape, make_prompts
from octavo_server.bench.quality import take_quality
from octavo_server.bench.record import Record, Result, describe_model
from octavo_server.bench.stats import histogram
from octavo_server.config import EngineConfig
from octavo_server.flags import build, read_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from octavo_server.llm import LLM


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRun:
    """One batch from its first prompt to its last token; seconds."""

    asks: list[Ask]
    output_tokens: int
    wall_s: float
    first_s: float
    """Until each sequence had a token."""

    @property
    def prompt_tokens(self) -> int:
        return sum(len(ask.content) for ask in self.asks)

    @property
    def decode_tokens_per_s(self) -> float:
        """Of the tokens after each sequence's first."""
        return (self.output_tokens - len(self.asks)) / max(self.wall_s - self.first_s, 1e-9)


def load_engine(values: argparse.Namespace) -> LLM:
    """The engine of the flags and the environment."""
    config = build(EngineConfig, read_settings(values, os.environ, EngineConfig))
    from octavo_server.llm import LLM

    return LLM.from_config(config)


def run_batch(llm: LLM, size: int, *, prompt_tokens: int, max_tokens: int, seed: int) -> BatchRun:
    """`size` prompts of random ids at once, greedily to the full length."""
    from octavo_server.engine.request import SamplingParams

    shape = PromptShape(num_tokens=prompt_tokens, vocab_size=llm.engine.limits.vocab_size)
    prompts = make_prompts(shape, size, seed)
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    wall_s = time.perf_counter() - started
    firsts = [output.metrics.first_token_time for output in outputs]
    last_first = max(first for first in firsts if first is not None)
    return BatchRun(
        asks=[Ask(content=prompt, max_tokens=max_tokens) for prompt in prompts],
        output_tokens=sum(len(output.outputs[0].token_ids) for output in outputs),
        wall_s=wall_s,
        first_s=last_first - outputs[0].metrics.arrival_time,
    )


def engine_record(
    llm: LLM,
    command: str,
    workload: Mapping[str, Any],
    results: Sequence[Result],
    runs: Sequence[BatchRun],
    notes: Mapping[str, str],
) -> Record:
    """A record with samples of this engine."""
    asks = [ask for run in runs for ask in run.asks]
    return Record(
        command=command,
        workload=workload,
        results=results,
        model=describe_model(llm.config.model, Path(llm.location) if llm.location else None),
        engine=asdict(llm.config),
        resolved=llm.resolved,
        prompts={
            "sha256": sha256_of(asks),
            "prompt_tokens": histogram([len(ask.content) for ask in asks]),
            "output_tokens": histogram([run.output_tokens // len(run.asks) for run in runs for _ in run.asks]),
        },
        quality=asyncio.run(take_quality(EngineAnswerer(llm), llm.engine.limits.max_sequence_tokens)),
        notes=notes,
    )
