"""`/v1/chat/completions` over sockets on the real engine and a tiny Llama: streamed is whole, counts are exact."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from octavo_testing.server import Server, a_chat, a_completion, chat_text, real_server


@pytest.fixture
async def server(tiny_model: Path) -> AsyncIterator[Server]:
    async with real_server(tiny_model) as running:
        yield running


async def test_an_answer_has_openais_shape_and_exact_usage(server: Server) -> None:
    answer = await server.post("/v1/chat/completions", a_chat(ignore_eos=True))

    body = answer.json
    choice = body["choices"][0]
    assert answer.status == 200
    assert (body["object"], body["model"]) == ("chat.completion", "tiny")
    assert body["id"].startswith("chatcmpl-")
    assert (
        choice["message"]["role"],
        choice["finish_reason"],
        choice["stop_reason"],
    ) == ("assistant", "length", None)
    assert body["usage"]["completion_tokens"] == 8
    tokens = (await server.post("/tokenize", {"messages": a_chat()["messages"]})).json
    assert tokens["count"] == body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] - 8


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 1.0, "seed": 5, "max_tokens": 60},
        {"n": 3, "temperature": 1.0, "seed": 5, "max_tokens": 30},
        {"max_completion_tokens": 3},
        {"logprobs": True, "top_logprobs": 3},
        {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.02, "seed": -3},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
        {"logit_bias": {"50": 20, "51": -100}},
    ],
)
async def test_the_joined_stream_is_the_whole_answer(server: Server, fields: dict[str, Any]) -> None:
    whole = (await server.post("/v1/chat/completions", a_chat(ignore_eos=True, **fields))).json
    body = a_chat(ignore_eos=True, stream=True, stream_options={"include_usage": True}, **fields)
    events = (await server.post("/v1/chat/completions", body)).events

    for choice in whole["choices"]:
        mine = [c for e in events for c in e["choices"] if c["index"] == choice["index"]]
        assert choice["message"]["content"] == chat_text(events, choice["index"])
        assert mine[0]["delta"]["role"] == "assistant"
        assert [choice["finish_reason"]] == [c["finish_reason"] for c in mine if c["finish_reason"]]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        if choice["logprobs"]:
            streamed = [entry for c in mine if c["logprobs"] for entry in c["logprobs"]["content"]]
            assert [e["token"] for e in choice["logprobs"]["content"]] == [e["token"] for e in streamed]
    assert events[-1]["choices"] == []
    counted = {**events[-1]["usage"], "prompt_tokens_details": None}
    assert {**whole["usage"], "prompt_tokens_details": None} == counted
    assert all(event["usage"] is None for event in events[:-1])
    assert len({(event["id"], event["created"], event["model"]) for event in events}) == 1


async def test_a_second_equal_prompt_reads_the_prefix_cache_and_usage_says_so(server: Server) -> None:
    body = a_chat("A long question, so that it fills more than one block of sixteen tokens for sure. " * 2)

    first = (await server.post("/v1/chat/completions", body)).json
    second = (await server.post("/v1/chat/completions", body)).json
    salted = (await server.post("/v1/chat/completions", {**body, "cache_salt": "other"})).json

    several = (await server.post("/v1/chat/completions", {**body, "n": 3})).json

    answers = (first, second, salted, several)
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    expected = (first["usage"]["prompt_tokens"] - 1) // 16 * 16
    # The prompt counts once, however many outputs share it.
    assert cached == [0, expected, 0, expected]
    assert first["choices"] == second["choices"]
    assert await server.metric("vllm:prefix_cache_hits_total") == 4 * expected


async def test_a_stop_string_never_leaks_and_is_named(server: Server) -> None:
    free = (await server.post("/v1/chat/completions", a_chat(ignore_eos=True, max_tokens=60))).json
    text = free["choices"][0]["message"]["content"]
    stop = text[20:23]
    before = text[: text.index(stop)]

    body = a_chat(ignore_eos=True, max_tokens=60, stop=[stop, "never in there"])
    whole = (await server.post("/v1/chat/completions", body)).json["choices"][0]
    events = (await server.post("/v1/chat/completions", {**body, "stream": True})).events
    included = (await server.post("/v1/chat/completions", {**body, "include_stop_str_in_output": True})).json

    assert (before, "stop", stop) == (whole["message"]["content"], whole["finish_reason"], whole["stop_reason"])
    assert before == chat_text(events)
    assert before + stop == included["choices"][0]["message"]["content"]


async def test_logprobs_are_sorted_finite_and_join_to_the_text(server: Server) -> None:
    body = a_chat(ignore_eos=True, logprobs=True, top_logprobs=5, max_tokens=30, logit_bias={"400": -100})

    choice = (await server.post("/v1/chat/completions", body)).json["choices"][0]

    entries = choice["logprobs"]["content"]
    joined = b"".join(bytes(entry["bytes"]) for entry in entries)
    assert choice["message"]["content"].rstrip("\ufffd") == joined.decode("utf-8", "replace").rstrip("\ufffd")
    for entry in entries:
        tops = [top["logprob"] for top in entry["top_logprobs"]]
        assert len(tops) == 5
        assert sorted(tops, reverse=True) == tops
        assert -10_000 < entry["logprob"] <= 0
        # Greedy, and nothing was biased that would have won.
        assert entry["logprob"] == tops[0]


@pytest.mark.parametrize("include", [False, True])
async def test_logprobs_join_to_the_text_that_a_stop_string_left(server: Server, include: bool) -> None:
    """Here it begins in the middle of a token, of which only the beginning is listed."""
    body = a_chat(ignore_eos=True, logprobs=True, max_tokens=60, include_stop_str_in_output=include)
    free = (await server.post("/v1/chat/completions", body)).json["choices"][0]["logprobs"]["content"]
    stop = next(item["token"][1:] for item in free if item["token"][1:].isalpha())

    body |= {"stop": [stop, "never in there"]}
    choice = (await server.post("/v1/chat/completions", body)).json["choices"][0]
    events = (await server.post("/v1/chat/completions", {**body, "stream": True})).events

    listed = choice["logprobs"]["content"]
    streamed = [choice["logprobs"] for event in events for choice in event["choices"]]
    text = b"".join(bytes(entry["bytes"]) for entry in listed).decode(errors="replace")
    assert choice["message"]["content"] == text == chat_text(events)
    assert choice["stop_reason"] == stop
    assert listed == [entry for logprobs in streamed if logprobs for entry in logprobs["content"]]


async def test_the_token_that_ended_the_output_is_not_among_the_logprobs(server: Server) -> None:
    fields = {"ignore_eos": True, "return_token_ids": True, "max_tokens": 30}
    free = (await server.post("/v1/chat/completions", a_chat(**fields))).json["choices"][0]["token_ids"]
    stop = next(item for n, item in enumerate(free) if n > 3 and item not in free[:n])

    body = a_chat(logprobs=True, stop_token_ids=[stop], **fields)
    choice = (await server.post("/v1/chat/completions", body)).json["choices"][0]

    assert choice["stop_reason"] == stop == choice["token_ids"][-1]
    assert len(choice["logprobs"]["content"]) == len(choice["token_ids"]) - 1


async def test_the_client_may_ask_for_token_ids_and_prompt_logprobs(server: Server) -> None:
    answer = (await server.post("/v1/chat/completions", a_chat(return_token_ids=True, prompt_logprobs=1))).json

    assert answer["usage"]["completion_tokens"] == len(answer["choices"][0]["token_ids"])
    assert answer["usage"]["prompt_tokens"] == len(answer["prompt_token_ids"]) == len(answer["prompt_logprobs"])
    assert answer["prompt_logprobs"][0] is None
    for token_id, entry in zip(answer["prompt_token_ids"][1:], answer["prompt_logprobs"][1:], strict=True):
        assert {"logprob", "rank", "decoded_token"} == set(entry[str(token_id)])


@pytest.mark.parametrize(("path", "make"), [("/v1/chat/completions", a_chat), ("/v1/completions", a_completion)])
async def test_a_stream_tells_its_prompts_token_ids_once(server: Server, path: str, make: Any) -> None:
    """As vLLM: in the first chunk, beside the choices of a chat and in each choice of a completion."""
    fields = {"return_token_ids": True, "n": 2, "ignore_eos": True}
    whole = (await server.post(path, make(**fields))).json
    events = (await server.post(path, make(stream=True, **fields))).events

    told = [("chunk", event["prompt_token_ids"]) for event in events if "prompt_token_ids" in event]
    told += [
        (choice["index"], choice["prompt_token_ids"])
        for event in events
        for choice in event["choices"]
        if "prompt_token_ids" in choice
    ]
    prompt = whole.get("prompt_token_ids") or whole["choices"][0]["prompt_token_ids"]
    where = ["chunk"] if path == "/v1/chat/completions" else [0, 1]
    assert told == [(place, prompt) for place in where]
    assert len(prompt) == whole["usage"]["prompt_tokens"]
    assert not any("prompt_token_ids" in event for event in events[1:])


async def test_many_at_once_get_what_each_gets_alone(server: Server) -> None:
    bodies = [a_chat(f"Question {n}: why {'so ' * n}?", ignore_eos=True, max_tokens=20) for n in range(12)]
    alone = [(await server.post("/v1/chat/completions", body)).json["choices"] for body in bodies]

    together = await asyncio.gather(*(server.post("/v1/chat/completions", body) for body in bodies))

    assert alone == [answer.json["choices"] for answer in together]


async def test_roles_parts_and_template_variables_reach_the_prompt(server: Server) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": parts}]

    ids = (await server.post("/tokenize", {"messages": messages})).json["tokens"]

    text = (await server.post("/detokenize", {"tokens": ids})).json["prompt"]
    expected = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\none\ntwo<|im_end|>\n<|im_start|>assistant\n"
    assert expected == text


async def test_the_last_message_can_be_continued(server: Server) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, my"}]
    body = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}

    ids = (await server.post("/tokenize", body)).json["tokens"]

    assert (await server.post("/detokenize", {"tokens": ids})).json["prompt"].endswith("assistant\nHello, my")


async def test_without_max_tokens_the_answer_may_fill_the_context(server: Server) -> None:
    body = a_chat(ignore_eos=True)
    del body["max_tokens"]

    answer = (await server.post("/v1/chat/completions", body)).json

    assert answer["usage"]["total_tokens"] == 512
    assert answer["choices"][0]["finish_reason"] == "length"
