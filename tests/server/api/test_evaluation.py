"""As lm-evaluation-harness asks (`local-completions`): its bodies, its reading of the answers, transformers' numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo_server.tokenizer.tokenizer import load_tokenizer
from octavo_testing.server import NAME, real_server

TOLERANCE = 5e-4
EOS = 1
CASES = [
    ([5, 6, 7, 8, 9], [10, 11]),
    ([40], [41]),
    (list(range(20, 120)), [130, 131, 132, 133]),
    (list(range(20, 120)), [140]),
    ([300, 301], [302] * 50),
]
"""Context and continuation; two share a beginning, which the prefix cache must not answer."""


@pytest.fixture(scope="module")
def oracle(tiny_model: Path) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(str(tiny_model), dtype=torch.float32).eval()


def likelihood(oracle: Any, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """The continuation's log-likelihood, and whether it is what greedy decoding gives."""
    with torch.inference_mode():
        logits = oracle(torch.tensor([[*context, *continuation]])).logits[0, len(context) - 1 : -1].float()
    targets = torch.tensor(continuation)
    logprobs = logits.log_softmax(-1).gather(1, targets[:, None]).sum()
    return float(logprobs), bool((logits.argmax(-1) == targets).all())


def a_body(prompts: list[list[int]], **fields: Any) -> dict[str, Any]:
    """What the harness sends for a batch of token-id prompts."""
    return {
        "model": NAME,
        "prompt": prompts,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
        **fields,
    }


def read_likelihoods(answer: Any, context_lengths: list[int], num_generated: int) -> list[tuple[float, bool]]:
    """As the harness reads: sums behind the context without what was generated; greedy where each is its row's best."""
    found = []
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    for choice, length in zip(choices, context_lengths, strict=True):
        lists = choice["logprobs"]
        rows = slice(length, len(lists["token_logprobs"]) - num_generated)
        chosen, tops = lists["token_logprobs"][rows], lists["top_logprobs"][rows]
        greedy = all(value == max(top.values()) for value, top in zip(chosen, tops, strict=True))
        found.append((sum(chosen), greedy))
    return found


@pytest.mark.parametrize("max_tokens", [0, 1])
async def test_log_likelihoods_are_transformers(tiny_model: Path, oracle: Any, max_tokens: int) -> None:
    prompts = [[*context, *continuation] for context, continuation in CASES]
    async with real_server(tiny_model) as server:
        answer = await server.post("/v1/completions", a_body(prompts, max_tokens=max_tokens))
        again = await server.post("/v1/completions", a_body(prompts, max_tokens=max_tokens))

    for found in (answer, again):
        read = read_likelihoods(found.json, [len(context) for context, _ in CASES], max_tokens)
        for (value, greedy), (context, continuation) in zip(read, CASES, strict=True):
            expected, expected_greedy = likelihood(oracle, context, continuation)
            assert value == pytest.approx(expected, abs=TOLERANCE * len(continuation))
            assert greedy == expected_greedy
    assert answer.json["usage"]["completion_tokens"] == max_tokens * len(CASES)


async def test_a_greedy_continuation_is_seen_as_such(tiny_model: Path, oracle: Any) -> None:
    context = [50, 60, 70]
    with torch.inference_mode():
        greedy = oracle.generate(torch.tensor([context]), max_new_tokens=4, do_sample=False, eos_token_id=None)
    continuation = greedy[0, len(context) :].tolist()
    other = [*continuation[:-1], (continuation[-1] + 1) % 512]
    async with real_server(tiny_model) as server:
        answer = await server.post("/v1/completions", a_body([context + continuation, context + other]))

    assert [greedy for _, greedy in read_likelihoods(answer.json, [3, 3], 1)] == [True, False]


async def test_a_generated_end_of_text_is_listed_without_text(tiny_model: Path, oracle: Any) -> None:
    """The harness cuts the last entry off; were the end of text not listed, it would cut a token of the prompt."""
    context, continuation = CASES[0]
    async with real_server(tiny_model) as server:
        body = a_body([context + continuation], logit_bias={str(EOS): 100})
        answer = (await server.post("/v1/completions", body)).json

    (choice,) = answer["choices"]
    lists = choice["logprobs"]
    assert choice["finish_reason"] == "stop"
    assert {len(values) for values in lists.values()} == {len(context) + len(continuation) + 1}
    assert (lists["tokens"][-1], "".join(lists["tokens"])) == ("", choice["text"])
    value, _ = read_likelihoods(answer, [len(context)], 1)[0]
    assert value == pytest.approx(likelihood(oracle, context, continuation)[0], abs=TOLERANCE * 2)


async def test_a_text_prompt_is_scored_as_its_ids(tiny_model: Path) -> None:
    text = "The quick brown fox 東京"
    ids = load_tokenizer(tiny_model).encode(text)
    async with real_server(tiny_model) as server:
        by_text = await server.post("/v1/completions", {**a_body([ids]), "prompt": text})
        by_ids = await server.post("/v1/completions", a_body([ids]))

    lists = by_ids.json["choices"][0]["logprobs"]
    assert by_text.json["choices"][0]["logprobs"] == lists
    assert lists["token_logprobs"][0] is None
    offsets = [0]
    for token in lists["tokens"]:
        offsets.append(offsets[-1] + len(token))
    assert lists["text_offset"] == offsets[:-1]
