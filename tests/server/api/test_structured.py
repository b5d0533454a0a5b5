"""Answers that must look like something, on random weights: whatever ends by itself follows what was asked."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from octavo_server import LLM, SamplingParams, StructuredOutputsParams
from octavo_server.engine.engine import MAX_FAILED_STEPS
from octavo_server.structured_output.compiler import GrammarState
from octavo_testing.schemas import SCHEMAS, an_object
from octavo_testing.server import NAME, Server, a_chat, a_completion, fake_server, real_server

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SHORT = an_object(
    color={"enum": ["red", "green"]}, count={"type": "integer", "minimum": 0, "maximum": 99}, ok={"type": "boolean"}
)


def of_schema(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


async def ended(server: Server, **fields: Any) -> list[str]:
    """The answers that ended by themselves, of 8."""
    answer = await server.post(CHAT, a_chat(n=8, seed=1, temperature=1.0, **{"max_tokens": 200, **fields}))
    assert answer.status == 200, answer.json
    choices = answer.json["choices"]
    found = [choice["message"]["content"] for choice in choices if choice["finish_reason"] == "stop"]
    assert found
    return found


@pytest.mark.parametrize("name", ["person", "min-max", "any-of", "tuple", "const-object", "unicode-enum", "tool-call"])
async def test_an_answer_follows_its_schema_on_random_weights(name: str, tiny_model: Path) -> None:
    async with real_server(tiny_model) as server:
        quote, brace = (await server.post("/tokenize", {"prompt": '"a}'})).json["tokens"][::2]
        bias = {str(quote): 12, str(brace): 12}
        for text in await ended(server, response_format=of_schema(SCHEMAS[name]), logit_bias=bias):
            jsonschema.validate(json.loads(text), SCHEMAS[name])


async def test_each_kind_holds_in_both_endpoints(tiny_model: Path) -> None:
    async with real_server(tiny_model) as server:
        assert {*await ended(server, structured_outputs={"choice": ["yes", "no"]})} <= {"yes", "no"}
        for text in await ended(server, structured_outputs={"regex": "[ab]{2,3}"}):
            assert re.fullmatch("[ab]{2,3}", text)
        for text in await ended(server, structured_outputs={"grammar": 'root ::= ("x" | "y") "z"'}):
            assert text in ("xz", "yz")
        answer = await server.post(
            COMPLETIONS,
            a_completion(
                prompt=["a", "b"], max_tokens=60, structured_outputs={"json": SHORT, "disable_any_whitespace": True}
            ),
        )
        assert [choice["finish_reason"] for choice in answer.json["choices"]] == ["stop", "stop"]
        for choice in answer.json["choices"]:
            jsonschema.validate(json.loads(choice["text"]), SHORT)


async def test_a_streamed_answer_is_the_whole_one(tiny_model: Path) -> None:
    body = a_chat(temperature=1.0, seed=3, max_tokens=100, response_format=of_schema(SHORT), logprobs=True)
    async with real_server(tiny_model) as server:
        whole = (await server.post(CHAT, body)).json["choices"][0]
        events = (await server.post(CHAT, {**body, "stream": True})).events

    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert text == whole["message"]["content"]
    assert "".join(entry["token"] for entry in whole["logprobs"]["content"]) == text
    jsonschema.validate(json.loads(text), SHORT)


@pytest.mark.parametrize("extra", [{"ignore_eos": True}, {"min_tokens": 60}], ids=["ignore_eos", "min_tokens"])
async def test_a_fulfilled_grammar_ends_the_answer_whatever_else_is_asked(
    extra: dict[str, Any], tiny_model: Path
) -> None:
    async with real_server(tiny_model) as server:
        answer = await server.post(CHAT, a_chat(max_tokens=60, structured_outputs={"choice": ["yes", "no"]}, **extra))

    [choice] = answer.json["choices"]
    assert choice["message"]["content"] in ("yes", "no")
    assert choice["finish_reason"] == "stop"


async def test_a_request_that_leaves_nothing_to_choose_is_refused_alone(tiny_model: Path) -> None:
    """It is the request's own fault, so an operator's alarm for 5xx stays silent."""
    body = a_chat(structured_outputs={"choice": ["yes"]}, allowed_token_ids=[5])
    async with real_server(tiny_model) as server:
        failing = await server.post(CHAT, body)
        streamed = await server.post(CHAT, {**body, "stream": True})
        good = await server.post(CHAT, a_chat())

    assert failing.status == 400
    assert "leave no token to choose" in failing.json["error"]["message"]
    assert streamed.events[-1] == failing.json
    assert good.status == 200


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHAT, a_chat(response_format=of_schema(SHORT)), "response_format"),
        (CHAT, a_chat(structured_outputs={"json": SHORT}), "structured_outputs"),
        (COMPLETIONS, a_completion(response_format=of_schema(SHORT)), "response_format"),
        ("/v1/responses", {"model": NAME, "input": "Hi", "text": {"format": {"type": "json_schema", "name": "a", "schema": SHORT}}}, "text.format"),
    ],
    ids=["chat", "extension", "completions", "responses"],
)  # fmt: skip
async def test_a_format_that_fails_while_it_runs_is_told_under_the_name_that_was_sent(
    path: str, body: dict[str, Any], field: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grammar may need more memory for an output than there is for it; a second try of it would need as much."""
    monkeypatch.setattr(GrammarState, "accept", lambda self, token_id: False)
    monkeypatch.setattr(GrammarState, "error", "too many items")
    async with real_server(tiny_model) as server:
        whole = await server.post(path, body)
        streamed = await server.post(path, {**body, "stream": True})

    assert whole.status == 400
    assert whole.json["error"] == {
        "message": f"{field}: too many items", "type": "invalid_request_error", "param": field, "code": "invalid_value"
    }  # fmt: skip
    if path == "/v1/responses":
        assert f'"message":"{field}: too many items"' in streamed.body.decode().split("\n\n")[-2]
    else:
        assert streamed.events[-1] == whole.json


async def test_many_requests_that_leave_nothing_to_choose_do_not_pass_for_a_broken_engine(tiny_model: Path) -> None:
    body = a_chat(structured_outputs={"choice": ["yes"]}, allowed_token_ids=[5])
    async with real_server(tiny_model) as server:
        statuses = [(await server.post(CHAT, body)).status for _ in range(MAX_FAILED_STEPS + 2)]
        good = await server.post(CHAT, a_chat())

    assert statuses == [400] * (MAX_FAILED_STEPS + 2)
    assert good.status == 200


def as_format(schema: Any) -> dict[str, Any]:
    return a_chat(response_format=of_schema(schema))


def as_forced_call(schema: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"], "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    return a_chat(tools=tools, tool_choice="required")


@pytest.mark.parametrize("body", [as_format, as_forced_call])
async def test_grammars_that_take_long_hold_nobody_else(
    body: Callable[[Any], dict[str, Any]], tiny_model: Path
) -> None:
    """Each takes a second of processor time until it is refused, one after the other."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    bodies = [body({"type": "integer", "multipleOf": 99_999_989 - number}) for number in range(3)]
    async with real_server(tiny_model) as server:
        await server.post(CHAT, a_chat(structured_outputs={"choice": ["yes"]}))
        held = [asyncio.create_task(server.post(CHAT, body)) for body in bodies]
        # When the first is answered, the others have come in; the second comes behind them.
        answered = [await server.post(CHAT, a_chat()) for _ in range(2)]
        num_waiting = sum(not task.done() for task in held)
        refused = await held[0]
        for task in held[1:]:
            task.cancel()

    assert [answer.status for answer in answered] == [200, 200]
    assert num_waiting == len(held)
    assert refused.status == 400
    assert "takes more than" in refused.json["error"]["message"]


async def test_structured_answers_do_not_change_with_the_batch(tiny_model: Path) -> None:
    body = a_chat(temperature=1.0, seed=5, max_tokens=60, response_format=of_schema(SHORT))
    async with real_server(tiny_model) as server:
        alone = await server.post(CHAT, body)
        together = await asyncio.gather(*(server.post(CHAT, body) for _ in range(6)), server.post(CHAT, a_chat()))

    texts = {answer.json["choices"][0]["message"]["content"] for answer in together[:-1]}
    assert texts == {alone.json["choices"][0]["message"]["content"]}


async def test_preempted_outputs_go_on_where_their_grammar_was(tiny_model: Path) -> None:
    """Room for two outputs of eight: the others are preempted again and again."""
    schema = {"type": "array", "items": {"enum": ["abc", "def"]}, "minItems": 12, "maxItems": 12}
    async with real_server(tiny_model, engine={"num_gpu_blocks_override": 16}) as server:
        answer = await server.post(
            CHAT, a_chat(n=8, seed=1, temperature=1.0, max_tokens=150, structured_outputs={"json": schema, "disable_any_whitespace": True})
        )  # fmt: skip
        preemptions = await server.metric("vllm:num_preemptions_total")

    assert preemptions > 0
    for choice in answer.json["choices"]:
        jsonschema.validate(json.loads(choice["message"]["content"]), schema)


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "an object"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": {}, "schema": {}}}},
            "response_format.json_schema.name",
            "a string",
        ),
        ({"response_format": of_schema("x")}, "response_format.json_schema.schema", "a JSON Schema"),
        ({"response_format": of_schema({"type": "strng"})}, "response_format", "response_format cannot be"),
        ({"response_format": of_schema({"uniqueItems": True})}, "response_format", "uniqueItems"),
        ({"structured_outputs": {"json": {"type": "strng"}}}, "structured_outputs", "Invalid type: strng"),
        (
            {"structured_outputs": {"json": {"type": "strng"}}, "response_format": {"type": "text"}},
            "structured_outputs",
            "structured_outputs cannot be",
        ),
        ({"structured_outputs": {}}, "structured_outputs", "exactly one of"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs", "unclosed group"),
        ({"structured_outputs": {"regex": 3}}, "structured_outputs.regex", "a string"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "choice must be"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice", "1 to 10,000 strings"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json", "an object, or its text, got 5"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "not supported"),
        ({"structured_outputs": {"rgx": "x"}}, "structured_outputs.rgx", "not known"),
        (
            {"structured_outputs": {"regex": "x"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
            "exclude each other",
        ),
        ({"guided_json": {}}, "guided_json", "use structured_outputs"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "1 to"),
        ({"allowed_token_ids": [512]}, "allowed_token_ids", "vocabulary has 512"),
        ({"allowed_token_ids": "all"}, "allowed_token_ids", "an array"),
        ({"bad_words": [""]}, "bad_words", "1 to 256"),
        ({"bad_words": [" "]}, "bad_words", "no text"),
        ({"bad_words": [5]}, "bad_words", "1 to 256"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "from 1"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "from -1"),
        ({"truncate_prompt_tokens": 513}, "truncate_prompt_tokens", "the context holds 512"),
    ],
)
async def test_what_cannot_be_followed_is_refused_by_name(
    fields: dict[str, Any], param: str, said: str, tokenizer_folder: Path
) -> None:
    async with fake_server(tokenizer_folder) as server:
        answer = await server.post(CHAT, a_chat(**fields))

    assert answer.status == 400
    assert answer.json["error"]["param"] == param
    assert said in answer.json["error"]["message"]


async def test_plain_text_as_a_format_changes_nothing(tiny_model: Path) -> None:
    async with real_server(tiny_model) as server:
        plain = await server.post(CHAT, a_chat())
        named = await server.post(CHAT, a_chat(response_format={"type": "text"}))

    assert named.json["choices"] == plain.json["choices"]


async def test_bad_words_never_appear(tiny_model: Path) -> None:
    async with real_server(tiny_model) as server:
        before = (await server.post(COMPLETIONS, a_completion(max_tokens=12))).json["choices"][0]["text"]
        word = before[2:4]
        after = (await server.post(COMPLETIONS, a_completion(max_tokens=12, bad_words=[word]))).json["choices"][0][
            "text"
        ]

    assert word in before
    assert word not in after


async def test_allowed_token_ids_are_all_that_comes(tiny_model: Path) -> None:
    async with real_server(tiny_model) as server:
        answer = await server.post(
            CHAT, a_chat(temperature=1.0, allowed_token_ids=[40, 41, 42], return_token_ids=True, max_tokens=20)
        )

    assert {*answer.json["choices"][0]["token_ids"]} <= {40, 41, 42}


@pytest.mark.parametrize(("keep", "kept"), [(5, 5), (-1, 512 - 8), (512, None)], ids=["some", "as-fit", "all"])
async def test_truncation_keeps_the_last_tokens(keep: int, kept: int | None, tiny_model: Path) -> None:
    prompt = list(range(2, 402)) + list(range(2, 202))
    async with real_server(tiny_model) as server:
        answer = await server.post(
            COMPLETIONS,
            a_completion(prompt=prompt, max_tokens=8, truncate_prompt_tokens=keep, return_token_ids=True),
        )

    if kept is None:
        # 512 tokens leave no room for 8 more.
        assert answer.status == 400
        return
    assert answer.json["usage"]["prompt_tokens"] == kept
    assert answer.json["choices"][0]["prompt_token_ids"] == prompt[-kept:]


async def test_a_text_is_cut_as_its_tokens_are(tiny_model: Path) -> None:
    text = "word " * 30_000 + "the very end of it"
    async with real_server(tiny_model) as server:
        answer = await server.post(
            COMPLETIONS, a_completion(prompt=text, truncate_prompt_tokens=12, echo=True, return_token_ids=True)
        )
        whole = (await server.post("/tokenize", {"prompt": text[-200:]})).json["tokens"]

    assert answer.json["choices"][0]["prompt_token_ids"] == whole[-12:]
    assert "very end of it" in answer.json["choices"][0]["text"]


async def test_the_openai_client_parses_into_its_own_types(tiny_model: Path) -> None:
    from pydantic import BaseModel

    class Light(BaseModel):
        on: bool
        level: int

    async with (
        real_server(tiny_model) as server,
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
    ):
        answer = await client.chat.completions.parse(
            model=NAME,
            messages=[{"role": "user", "content": "Is the light on?"}],
            response_format=Light,
            max_tokens=200,
            temperature=0,
            extra_body={"logit_bias": {"94": 10}},
        )

    assert isinstance(answer.choices[0].message.parsed, Light)


def test_offline_follows_a_schema_given_as_an_object(tiny_model: Path) -> None:
    llm = LLM(str(tiny_model), num_gpu_blocks_override=200)
    params = SamplingParams(
        temperature=1.0, seed=1, max_tokens=100, n=3, structured_outputs=StructuredOutputsParams(json=SHORT)
    )  # type: ignore[arg-type]  # as vLLM's scripts do

    [output] = llm.generate("An answer: ", params)

    assert len(output.outputs) == 3
    for found in output.outputs:
        jsonschema.validate(json.loads(found.text), SHORT)
