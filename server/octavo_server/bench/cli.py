"""The commands `octavo bench serve` and `octavo bench throughput`: measure, print a table, write JSON where asked."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo_server.bench.load import LoadResult, Target, run_load
from octavo_server.bench.prompts import PromptShape, make_prompts
from octavo_server.bench.stats import table
from octavo_server.config import EngineConfig
from octavo_server.errors import ConfigError, OctavoError
from octavo_server.flags import FlagParser, add_flags, build, read_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_USAGE = """usage: octavo bench serve --model NAME [--url URL] [-c 1,8,32] [-n 32] …
       octavo bench throughput MODEL [-c 1,8,32] …

serve measures a running OpenAI-compatible server, throughput the engine alone in this process.
octavo bench serve --help and octavo bench throughput --help explain the flags."""

_SERVE_HEADER = (
    "clients", "requests", "failed", "tok/s", "req/s",
    "TTFT p50", "p95", "p99", "ITL p50", "p95", "p99", "TPOT p50", "cached",
)  # fmt: skip
_THROUGHPUT_HEADER = ("batch", "prompt tok", "output tok", "prefill tok/s", "decode tok/s", "output tok/s", "wall s")


def main(argv: Sequence[str]) -> int:
    """Runs one of the two; returns the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if argv else 2
    kinds = {"serve": bench_serve, "throughput": bench_throughput}
    if argv[0] not in kinds:
        raise ConfigError(f"octavo bench {argv[0]!r} is unknown; there are {' and '.join(kinds)}")
    return kinds[argv[0]](argv[1:])


def bench_serve(argv: Sequence[str]) -> int:
    """Streams requests at each concurrency and prints one row each; 1 where any request failed."""
    values = serve_parser().parse_strictly(argv)
    target = Target(
        url=values.url.rstrip("/").removesuffix("/v1"),
        model=values.model,
        endpoint=values.endpoint,
        max_tokens=values.max_tokens,
        temperature=values.temperature,
        ignore_eos=values.ignore_eos,
        # The variable may hold all keys of a server.
        api_key=values.api_key or os.environ.get("OCTAVO_API_KEY", "").split(",")[0].strip(),
        extra=_json_object(values.extra),
    )
    if values.token_ids and values.endpoint == "chat":
        raise ConfigError("--token-ids needs --endpoint completions: a chat message is text")
    results = asyncio.run(_measure(target, values))
    rows = [_serve_row(result) for result in results]
    print(f"{target.url} {target.path} {target.model}: {values.prompt_tokens} in, {target.max_tokens} out, times in ms")
    print(table(_SERVE_HEADER, rows))
    for error in {error for result in results for error in result.errors}:
        print(f"failed: {error}")
    _write_json(values.json, {"command": "bench serve", "url": target.url, "model": target.model,
                              "results": [result.as_json() for result in results]})  # fmt: skip
    return 1 if any(result.failed for result in results) else 0


async def _measure(target: Target, values: argparse.Namespace) -> list[LoadResult]:
    shape = PromptShape(
        num_tokens=values.prompt_tokens,
        shared_prefix=values.shared_prefix_tokens,
        vocab_size=values.token_ids or None,
    )
    results = []
    for step, concurrency in enumerate(values.concurrency):
        count = values.warmup + max(values.requests, concurrency)
        print(f"{concurrency} clients, {count} requests …", file=sys.stderr)
        # Another seed at each step, or the prefix cache would answer for the model.
        prompts = make_prompts(shape, count, seed=values.seed + step)
        results.append(
            await run_load(
                target, prompts, concurrency=concurrency, rate=values.rate, warmup=values.warmup, seed=values.seed
            )
        )
    return results


def bench_throughput(argv: Sequence[str]) -> int:
    """Runs batches of random token ids through the engine, without HTTP, and prints one row a batch size."""
    values = throughput_parser().parse_strictly(argv)
    config = build(EngineConfig, read_settings(values, os.environ, EngineConfig))
    from octavo_server.llm import LLM

    llm = LLM.from_config(config)
    rows = [
        _run_batch(llm, size, values.prompt_tokens, values.max_tokens, config.seed + size)
        for size in values.concurrency
    ]
    print(f"{config.model}: {values.prompt_tokens} in, {values.max_tokens} out, engine alone")
    print(table(_THROUGHPUT_HEADER, [list(row.values()) for row in rows]))
    _write_json(values.json, {"command": "bench throughput", "model": config.model, "results": rows})
    return 0


def _run_batch(llm: Any, size: int, prompt_tokens: int, max_tokens: int, seed: int) -> dict[str, float | int]:
    from octavo_server.engine.request import SamplingParams

    shape = PromptShape(num_tokens=prompt_tokens, vocab_size=llm.engine.limits.vocab_size)
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    started = time.perf_counter()
    outputs = llm.generate(make_prompts(shape, size, seed), params, use_tqdm=False)
    wall_s = time.perf_counter() - started
    first_s = max(output.metrics.first_token_time for output in outputs) - outputs[0].metrics.arrival_time
    output_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    decode_s = max(wall_s - first_s, 1e-9)
    return {
        "batch": size,
        "prompt_tokens": size * prompt_tokens,
        "output_tokens": output_tokens,
        "prefill_tokens_per_s": round(size * prompt_tokens / first_s, 1),
        "decode_tokens_per_s": round((output_tokens - size) / decode_s, 1),
        "output_tokens_per_s": round(output_tokens / wall_s, 1),
        "wall_s": round(wall_s, 3),
    }


def serve_parser() -> FlagParser:
    parser = FlagParser(prog="octavo bench serve", description="Measure a running OpenAI-compatible server.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the server (default: %(default)s)")
    parser.add_argument("--model", required=True, help="the served name")
    parser.add_argument("--endpoint", choices=["chat", "completions"], default="chat", help="default: %(default)s")
    parser.add_argument("-n", "--requests", type=int, default=32, help="requests at each step (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second as a Poisson process, instead of -c")
    parser.add_argument("--temperature", type=float, default=0.0, help="default: 0, greedy")
    parser.add_argument("--shared-prefix-tokens", type=int, default=0, help="words that all prompts begin with")
    parser.add_argument(
        "--token-ids", type=int, default=0, metavar="VOCAB", help="send random ids below VOCAB, exact lengths"
    )
    parser.add_argument(
        "--no-ignore-eos", dest="ignore_eos", action="store_false", help="let answers end by themselves"
    )
    parser.add_argument("--extra", default="{}", metavar="JSON", help="merged into each request body")
    parser.add_argument(
        "--warmup", type=int, default=1, help="untimed requests before each step (default: %(default)s)"
    )
    parser.add_argument("--api-key", default="", help="default: OCTAVO_API_KEY")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts (default: 0)")
    _add_shape(parser)
    return parser


def throughput_parser() -> FlagParser:
    parser = FlagParser(prog="octavo bench throughput", description="Measure the engine alone, in this process.")
    add_flags(parser, EngineConfig)
    _add_shape(parser)
    return parser


def _add_shape(parser: FlagParser) -> None:
    parser.add_argument(
        "-c", "--concurrency", type=_counts, default=[1, 8, 32], help="such as 8 or 1,8,32 (the default)"
    )
    parser.add_argument(
        "--prompt-tokens", type=int, default=128, help="words, or ids, of a prompt (default: %(default)s)"
    )
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens of an answer (default: %(default)s)")
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures there")


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ConfigError(f"--concurrency is {text!r}, it must be whole numbers such as 1,8,32")
    return counts


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--extra is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError("--extra must be a JSON object")
    return value


def _serve_row(result: LoadResult) -> list[object]:
    ttft, itl = result.ttft, result.itl
    return [
        result.concurrency, result.requests, result.failed, result.output_tokens_per_s, result.requests_per_s,
        ttft.p50_ms, ttft.p95_ms, ttft.p99_ms, itl.p50_ms, itl.p95_ms, itl.p99_ms, result.tpot.p50_ms,
        result.cached_tokens,
    ]  # fmt: skip


def _write_json(path: str, content: dict[str, Any]) -> None:
    if not path:
        return
    try:
        Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OctavoError(f"cannot write --json {path}: {error.strerror}") from error
