"""The flags of `octavo bench serve` and what they ask for; vLLM's names where it has them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo_server.bench.arguments import counts, json_object, rates, share, whole
from octavo_server.bench.client import Target
from octavo_server.bench.datasets import KINDS, SHAREGPT_TOKENS, Ask, Dataset, read_asks
from octavo_server.bench.load import Level
from octavo_server.bench.output import add_output_flags
from octavo_server.errors import ConfigError
from octavo_server.flags import FlagParser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

_RANDOM_TOKENS = (128, 64)
WORKLOAD = (
    "endpoint", "requests", "temperature", "ignore_eos", "extra", "warmup", "seed", "rounds", "dataset", "dataset_path",
    "prompt_tokens", "max_tokens", "range_ratio", "shared_prefix_tokens", "prefix_groups", "token_ids",
    "max_concurrency", "request_rate", "goodput",
)  # fmt: skip
"""Flags that say what was asked; a result file keeps them."""


@dataclass(slots=True, kw_only=True)
class Plan:
    """What the flags ask for."""

    target: Target
    levels: list[Level]
    asks: Callable[[int, int], list[Ask]]
    """Of a number of requests and of the turn that they are for; no two turns ask the same, but for a file's."""
    requests: int
    rounds: int
    warmup: int
    seed: int

    def turn(self, number: int, level: Level) -> list[Ask]:
        """The requests of one round of one level, those of its warm-up first."""
        return self.asks(self.warmup + max(self.requests, 0 if level.rate else level.concurrency or 1), number)


def serve_parser() -> FlagParser:
    parser = FlagParser(prog="octavo bench serve", description="Measure a running OpenAI-compatible server.")
    add = parser.add_argument
    add("--url", "--base-url", default="http://127.0.0.1:8000", help="address of the server (default: %(default)s)")
    add("--model", required=True, help="the served name")
    add("--endpoint", choices=["chat", "completions"], default="chat", help="default: %(default)s")
    add("--api-key", default="", help="default: the first of OCTAVO_API_KEY")
    add("--temperature", type=float, default=0.0, help="default: 0, greedy")
    add("--no-ignore-eos", dest="ignore_eos", action="store_false", help="let answers end by themselves")
    add("--extra", type=json_object, default={}, metavar="JSON", help="merged into each body; null takes a field out")
    add("--timeout", type=whole("--timeout"), default=900, help="seconds of one request (default: %(default)s)")
    load = parser.add_argument_group("load")
    load.add_argument(
        "-c", "--max-concurrency", type=counts("--max-concurrency"), default=None,
        help="clients that each send their next request when the last has ended; one level each (default: 1,8,32); with "
        "--request-rate how many run at once at most (default: no bound)",
    )  # fmt: skip
    load.add_argument(
        "--request-rate", type=rates, default=None, help="requests a second as a Poisson process, such as 1,2,4"
    )
    load.add_argument(
        "-n", "--requests", "--num-prompts", type=whole("--requests"), default=32,
        help="requests of each level and round (default: %(default)s)",
    )  # fmt: skip
    load.add_argument(
        "--rounds", type=whole("--rounds"), default=1,
        help="of all levels in turn; three or more give --compare an interval for rates (default: %(default)s)",
    )  # fmt: skip
    load.add_argument(
        "--warmup", type=whole("--warmup", 0), default=1, help="untimed requests before each (default: %(default)s)"
    )
    load.add_argument(
        "--goodput", nargs="+", default=[], metavar="NAME:MS",
        help="also count requests within these limits: ttft, tpot, e2e, such as ttft:500 tpot:50",
    )  # fmt: skip
    _add_dataset(parser)
    add_output_flags(parser)
    return parser


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("prompts").add_argument
    data("--dataset", choices=KINDS, default="random", help="sharegpt-like: log-normal lengths (default: random)")
    data("--dataset-path", default="", metavar="FILE", help="JSON lines with prompt or messages, or ShareGPT's JSON")
    data("--prompt-tokens", type=whole("--prompt-tokens"), default=None,
         help="words, or ids, of a prompt; sharegpt-like: the mean (default: 128, 161)")  # fmt: skip
    data("--max-tokens", type=whole("--max-tokens"), default=None,
         help="tokens of an answer; sharegpt-like: the mean (default: 64, 338, a file's own)")  # fmt: skip
    data("--range-ratio", type=share, default=0.0, metavar="R",
         help="ragged: lengths from (1 - R) to (1 + R) times these (default: 0)")  # fmt: skip
    data("--shared-prefix-tokens", type=whole("--shared-prefix-tokens", 0), default=0,
         help="of each prompt, how many all of its group begin with (default: 0)")  # fmt: skip
    data("--prefix-groups", type=whole("--prefix-groups"), default=1, help="default: 1, all prompts are one group")
    data("--token-ids", type=whole("--token-ids", 0), default=0, metavar="VOCAB",
         help="send random ids below VOCAB: exact lengths, completions only")  # fmt: skip
    data("--seed", type=int, default=0, help="of prompts, lengths and arrivals (default: 0)")


def read_plan(values: argparse.Namespace) -> Plan:
    """Raises ConfigError for flags that do not go together, and for a file that cannot be read."""
    if values.token_ids and values.endpoint == "chat":
        raise ConfigError("--token-ids needs --endpoint completions: a chat message is text")
    target = Target(
        url=values.url.rstrip("/").removesuffix("/v1"),
        model=values.model,
        endpoint=values.endpoint,
        temperature=values.temperature,
        ignore_eos=values.ignore_eos,
        # The variable may hold all keys of a server.
        api_key=values.api_key or os.environ.get("OCTAVO_API_KEY", "").split(",")[0].strip(),
        extra=values.extra,
        timeout_s=values.timeout,
    )
    return Plan(
        target=target,
        levels=_levels(values),
        asks=_asks_of(values),
        requests=values.requests,
        rounds=values.rounds,
        warmup=values.warmup,
        seed=values.seed,
    )


def _levels(values: argparse.Namespace) -> list[Level]:
    if values.request_rate is None:
        return [Level(concurrency=count) for count in values.max_concurrency or (1, 8, 32)]
    bounds = values.max_concurrency or [None]
    if len(bounds) > 1:
        raise ConfigError("--request-rate takes one --max-concurrency, such as 64, or none")
    return [Level(concurrency=bounds[0], rate=rate) for rate in values.request_rate]


def _asks_of(values: argparse.Namespace) -> Callable[[int, int], list[Ask]]:
    if values.dataset_path:
        asks = read_asks(values.dataset_path, values.max_tokens, values.seed)
        if values.endpoint == "completions" and any(_is_chat(ask) for ask in asks):
            raise ConfigError(f"--dataset-path {values.dataset_path} holds messages; use --endpoint chat")
        if values.endpoint == "chat" and any(_is_ids(ask) for ask in asks):
            raise ConfigError(f"--dataset-path {values.dataset_path} holds token ids; use --endpoint completions")
        return lambda count, turn: [asks[(turn * count + at) % len(asks)] for at in range(count)]
    means = SHAREGPT_TOKENS if values.dataset == "sharegpt-like" else _RANDOM_TOKENS
    dataset = Dataset(
        kind=values.dataset,
        prompt_tokens=values.prompt_tokens or means[0],
        max_tokens=values.max_tokens or means[1],
        range_ratio=values.range_ratio,
        shared_prefix=values.shared_prefix_tokens,
        prefix_groups=values.prefix_groups,
        vocab_size=values.token_ids or None,
    )
    # Another seed at each turn, or the prefix cache would answer for the model.
    return lambda count, turn: dataset.asks(count, seed=values.seed + turn)


def _is_chat(ask: Ask) -> bool:
    return isinstance(ask.content, list) and isinstance(ask.content[0], dict)


def _is_ids(ask: Ask) -> bool:
    return isinstance(ask.content, list) and not isinstance(ask.content[0], dict)
