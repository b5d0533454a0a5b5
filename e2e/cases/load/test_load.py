"""Eight clients at once: no error, exact counts, prefix cache hits, and nothing held afterwards."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import openai
import pytest

from e2e.cluster.models import Model
from e2e.cluster.waiting import wait_until

pytestmark = pytest.mark.e2e

NUM_CLIENTS = 8
REQUESTS_PER_CLIENT = 2
# Longer than several blocks of 16 tokens, and the same for all: the prefix that the cache shares.
SYSTEM = "You are a careful assistant who answers in one short sentence and never repeats the question. " * 3


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request cost, as its usage says."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


def test_eight_clients_at_once(smol: Model, client: openai.OpenAI) -> None:
    """The clients' usage adds up to the server's counters, token by token."""
    pod = smol.pod_names()[0]
    before = smol.scrape(pod)

    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        rounds = list(clients.map(lambda number: _converse(smol.name, client, number), range(NUM_CLIENTS)))
    answers = [answer for round_ in rounds for answer in round_]

    after = smol.scrape(pod)
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    assert NUM_CLIENTS * REQUESTS_PER_CLIENT == len(answers) == grown["vllm:request_success_total"]
    assert sum(answer.prompt_tokens for answer in answers) == grown["vllm:prompt_tokens_total"]
    assert sum(answer.completion_tokens for answer in answers) == grown["vllm:generation_tokens_total"]
    assert sum(answer.cached_tokens for answer in answers) == grown["vllm:prefix_cache_hits_total"]
    assert grown["vllm:prefix_cache_hits_total"] > 0


def test_nothing_is_held_after_the_load(smol: Model) -> None:
    """Running, waiting, usage and pressure are 0 at idle, with a warm prefix cache."""
    pod = smol.pod_names()[0]
    idle = [
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "octavo_kv_pressure_ratio",
    ]

    wait_until(
        lambda: [0.0] * len(idle) == [smol.scrape(pod)[name] for name in idle],
        "nothing is held",
        limit_s=10,
        describe=lambda: str({name: smol.scrape(pod)[name] for name in idle}),
    )


def _converse(model: str, client: openai.OpenAI, number: int) -> list[Answer]:
    """Every other client streams."""
    answers = []
    for turn in range(REQUESTS_PER_CLIENT):
        ask = {
            "model": model,
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": f"Client {number}, question {turn}: name a colour and an animal."},
            ],
            "max_tokens": 16,
            "seed": number,
        }
        if number % 2:
            chunks = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
            usage = list(chunks)[-1].usage
        else:
            usage = client.chat.completions.create(**ask).usage
        answers.append(Answer(usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details.cached_tokens))
    return answers
