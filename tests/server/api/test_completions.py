"""`/v1/completions`: prompts in four spellings, echo, log-probabilities as evaluation harnesses need them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from octavo_testing.server import Server, a_completion, completion_text, real_server


@pytest.fixture
async def server(tiny_model: Path) -> AsyncIterator[Server]:
    async with real_server(tiny_model) as running:
        yield running


async def ids_of(server: Server, text: str) -> list[int]:
    ids: list[int] = (await server.post("/tokenize", {"prompt": text})).json["tokens"]
    return ids


async def test_text_and_its_token_ids_are_the_same_prompt(server: Server) -> None:
    text = "The quick brown"
    prompts: list[Any] = [text, await ids_of(server, text), [text], [await ids_of(server, text)]]

    answers = [(await server.post("/v1/completions", a_completion(prompt))).json for prompt in prompts]

    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    assert (answers[0]["object"], answers[0]["id"][:5]) == ("text_completion", "cmpl-")


async def test_the_default_is_sixteen_tokens(server: Server) -> None:
    body = a_completion(ignore_eos=True)
    del body["max_tokens"]

    assert (await server.post("/v1/completions", body)).json["usage"]["completion_tokens"] == 16


async def test_several_prompts_times_n_are_choices_in_order(server: Server) -> None:
    prompts = ["The quick", "A pod holds", "Größe"]
    fields: dict[str, Any] = {"n": 2, "temperature": 1.0, "seed": 3, "ignore_eos": True}

    alone = [(await server.post("/v1/completions", a_completion(prompt, **fields))).json for prompt in prompts]
    together = (await server.post("/v1/completions", a_completion(prompts, **fields))).json
    events = (await server.post("/v1/completions", a_completion(prompts, stream=True, **fields))).events

    expected = [choice["text"] for answer in alone for choice in answer["choices"]]
    assert list(range(6)) == [choice["index"] for choice in together["choices"]]
    assert expected == [choice["text"] for choice in together["choices"]]
    assert expected == [completion_text(events, index) for index in range(6)]
    assert together["usage"]["prompt_tokens"] == sum(answer["usage"]["prompt_tokens"] for answer in alone)
    assert together["usage"]["completion_tokens"] == 48


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_puts_the_prompt_before_the_output(server: Server, stream: bool) -> None:
    plain = (await server.post("/v1/completions", a_completion())).json["choices"][0]["text"]

    answer = await server.post("/v1/completions", a_completion(echo=True, stream=stream))

    text = completion_text(answer.events) if stream else answer.json["choices"][0]["text"]
    assert "The quick brown" + plain == text


async def test_echo_with_logprobs_and_no_output_scores_the_prompt(server: Server) -> None:
    """What evaluation harnesses send: max_tokens 0 (or 1), echo, logprobs."""
    prompt = await ids_of(server, "The quick brown fox")

    zero = (await server.post("/v1/completions", a_completion(prompt, echo=True, logprobs=2, max_tokens=0))).json
    one = (await server.post("/v1/completions", a_completion(prompt, echo=True, logprobs=2, max_tokens=1))).json

    lists = zero["choices"][0]["logprobs"]
    assert "The quick brown fox" == zero["choices"][0]["text"] == "".join(lists["tokens"])
    assert len(prompt) == len(lists["token_logprobs"]) == len(lists["top_logprobs"]) == len(lists["text_offset"])
    assert lists["token_logprobs"][0] is None
    assert all(value <= 0 for value in lists["token_logprobs"][1:])
    assert [len("".join(lists["tokens"][:n])) for n in range(len(prompt))] == lists["text_offset"]
    assert zero["usage"]["completion_tokens"] == 0
    assert lists["token_logprobs"] == one["choices"][0]["logprobs"]["token_logprobs"][:-1]
    assert one["usage"]["completion_tokens"] == 1


async def test_logprobs_name_the_sampled_token_beside_the_likeliest(server: Server) -> None:
    body = a_completion(logprobs=1, temperature=1.5, seed=4, ignore_eos=True, max_tokens=12)

    lists = (await server.post("/v1/completions", body)).json["choices"][0]["logprobs"]

    assert len(lists["tokens"]) == 12
    for token, logprob, top in zip(lists["tokens"], lists["token_logprobs"], lists["top_logprobs"], strict=True):
        assert logprob == top[token]
        assert logprob <= max(top.values())


async def test_logprobs_join_to_the_text_that_a_stop_string_left(server: Server) -> None:
    """Here it begins in the middle of a token; echoed, what follows has an empty text, as evaluation harnesses need it."""
    body = a_completion(ignore_eos=True, logprobs=0, max_tokens=60)
    free = (await server.post("/v1/completions", body)).json["choices"][0]["logprobs"]["tokens"]
    place = next(n for n, (item, then) in enumerate(pairwise(free)) if n and item[1:].isalpha() and then.isalpha())
    stop = free[place][1:] + free[place + 1][:1]

    body |= {"stop": stop}
    choice = (await server.post("/v1/completions", body)).json["choices"][0]
    echoed = (await server.post("/v1/completions", {**body, "echo": True})).json["choices"][0]
    events = (await server.post("/v1/completions", {**body, "stream": True})).events

    tokens = choice["logprobs"]["tokens"]
    streamed = [choice["logprobs"] for event in events for choice in event["choices"] if choice["logprobs"]]
    assert tokens[place] == free[place][:1]
    assert (choice["stop_reason"], len(tokens)) == (stop, place + 1)
    assert tokens == [token for lists in streamed for token in lists["tokens"]]
    assert choice["text"] == completion_text(events)
    assert echoed["logprobs"]["tokens"][-place - 2 :] == [*tokens, ""]


async def test_offsets_go_on_through_a_stream(server: Server) -> None:
    body = a_completion(logprobs=0, ignore_eos=True, max_tokens=12)
    whole = (await server.post("/v1/completions", body)).json["choices"][0]["logprobs"]

    events = (await server.post("/v1/completions", {**body, "stream": True})).events

    streamed = [choice["logprobs"] for event in events for choice in event["choices"] if choice["logprobs"]]
    assert whole["text_offset"] == [offset for lists in streamed for offset in lists["text_offset"]]
    assert whole["tokens"] == [token for lists in streamed for token in lists["tokens"]]


async def test_the_tokenizer_may_be_told_to_add_nothing(server: Server) -> None:
    body = a_completion("<|im_start|>user", add_special_tokens=False)

    assert (await server.post("/v1/completions", body)).status == 200


async def test_an_end_token_ends_the_output_and_is_counted_but_not_shown(server: Server) -> None:
    answer = (await server.post("/v1/completions", a_completion(logit_bias={"1": 100}, return_token_ids=True))).json

    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("", "stop", None)
    assert choice["token_ids"] == [1]
    assert answer["usage"]["completion_tokens"] == 1
