"""What is read from bodies."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from dataclasses import fields
from typing import Any

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from octavo_gateway import request_body
from octavo_gateway.errors import BadRequest, GatewayError
from octavo_gateway.request_body import BodyBudget, BodyLimits, BodyReader, parse_body


def affinity(**fields: Any) -> str | None:
    return parse_body(json.dumps({"model": "m", **fields}).encode()).affinity


def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def test_all_turns_of_a_conversation_have_one_affinity() -> None:
    first = chat(("system", "be brief"), ("user", "hello"))

    later = [*first, *chat(("assistant", "hi"), ("user", "and now?"))]

    assert affinity(messages=first) == affinity(messages=later) is not None


def an_image(data: str = "iVBOR" + "A" * 5000 + "=") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}", "detail": "low"}}


WORDS = {"type": "text", "text": "What is this?"}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


@pytest.mark.parametrize("content", [[an_image()], [WORDS, an_image()], [an_image(), an_image("x"), WORDS]])
def test_all_turns_of_a_conversation_that_begins_with_images_and_uses_tools_have_one_affinity(content: Any) -> None:
    first = [{"role": "system", "content": "be brief"}, {"role": "user", "content": content}]
    called = [*first, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    answered = [*called, {"role": "tool", "tool_call_id": "call_1", "content": [an_image("y")]}]
    later = [*answered, {"role": "assistant", "content": "A cat."}, {"role": "user", "content": [an_image("z")]}]

    found = {affinity(messages=turn, tools=TOOLS) for turn in (first, called, answered, later)}

    assert len(found) == 1
    assert None not in found


def test_all_turns_of_responses_that_begin_with_an_image_have_one_affinity() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 5000}
    first = [{"role": "user", "content": [{"type": "input_text", "text": "hi"}, image]}]
    later = [*first, {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}]
    later += [{"type": "function_call_output", "call_id": "c", "output": "a cat"}, *chat(("user", "and?"))]

    assert affinity(input=first, tools=TOOLS) == affinity(input=later, tools=TOOLS) is not None


@pytest.mark.parametrize(
    "other", ["iVBOR" + "A" * 5000 + "B", "iVBOS" + "A" * 5000 + "=", "iVBOR" + "A" * 5001 + "=", ""]
)
def test_images_that_differ_in_either_end_or_in_length_spread(other: str) -> None:
    """Photographs of one camera begin alike."""
    content = [an_image(), WORDS], [an_image(other), WORDS]

    first, second = (affinity(messages=[{"role": "user", "content": each}]) for each in content)

    assert first != second


def test_the_order_of_an_images_fields_is_no_difference() -> None:
    image = an_image()
    turned = {**image, "image_url": dict(reversed(image["image_url"].items()))}

    first, second = (affinity(messages=[{"role": "user", "content": [each]}]) for each in (image, turned))

    assert first == second is not None


def test_the_affinity_of_a_large_image_is_found_without_copying_it() -> None:
    fields = {"messages": [{"role": "user", "content": [an_image("A" * 20_000_000), *[WORDS] * 100_000]}]}
    tracemalloc.start()
    try:
        request_body._affinity(fields)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 100_000


@pytest.mark.parametrize(
    "other",
    [
        {"messages": chat(("system", "be brief"), ("user", "bye"))},
        {"messages": chat(("system", "be long"), ("user", "hello"))},
        {"messages": chat(("system", "be brief"), ("user", "hello")), "cache_salt": "x"},
    ],
)
def test_another_beginning_or_salt_has_another_affinity(other: dict[str, Any]) -> None:
    assert affinity(messages=chat(("system", "be brief"), ("user", "hello"))) != affinity(**other)


def test_a_prompt_has_the_affinity_of_its_beginning() -> None:
    beginning = "x" * 2048

    assert affinity(prompt=beginning + "a") == affinity(prompt=beginning + "b") != affinity(prompt="y")


@pytest.mark.parametrize(
    "given_fields",
    [{}, {"messages": ["no object"]}, {"messages": []}, {"prompt": ["a", "b"]}, {"prompt": ""}, {"input": []}],
)
def test_a_body_without_a_beginning_has_none(given_fields: dict[str, Any]) -> None:
    assert affinity(**given_fields) is None


def test_a_prompt_of_token_ids_has_the_affinity_of_its_beginning() -> None:
    beginning = list(range(512))

    assert affinity(prompt=[*beginning, 1]) == affinity(prompt=[*beginning, 2]) != affinity(prompt=[7])


def test_all_turns_of_responses_have_one_affinity_however_the_first_is_written() -> None:
    parts = [{"type": "input_text", "text": "hello"}]
    later = [{"role": "user", "content": parts}, *chat(("assistant", "hi"), ("user", "and now?"))]

    assert affinity(instructions="be brief", input="hello") == affinity(instructions="be brief", input=later)
    assert affinity(instructions="be long", input="hello") != affinity(instructions="be brief", input="hello")


@pytest.mark.parametrize(
    ("options", "asked"), [({}, False), ({"include_usage": True}, True), ({"include_usage": False}, False)]
)
def test_a_stream_is_asked_for_its_usage_where_the_client_did_not(options: dict[str, Any], asked: bool) -> None:
    fields = {"model": "m", "stream": True, "stream_options": {**options, "other": 1}, "n": 3, "max_tokens": 7}

    body = parse_body(json.dumps(fields).encode())
    sent = json.loads(body.for_server("m", ask_for_usage=True))

    assert (body.asks_for_usage, body.num_answers, body.max_tokens) == (asked, 3, 7)
    assert sent == {**fields, "stream_options": {"other": 1, "include_usage": True}}


@pytest.mark.parametrize("raw", [b'{"model":"m","x": 1.00}', b' { "model" : "m" } \n', b'{"model":"m","a":{}}'])
def test_without_options_the_question_is_put_at_the_end_and_the_rest_goes_as_it_came(raw: bytes) -> None:
    sent = parse_body(raw).for_server("m", ask_for_usage=True)

    assert sent.startswith(raw.rstrip()[:-1])
    assert json.loads(sent) == {**json.loads(raw), "stream_options": {"include_usage": True}}


def test_the_name_and_the_question_go_together() -> None:
    sent = parse_body(b'{"model": "ns/m", "stream_options": null}').for_server("m", ask_for_usage=True)

    assert json.loads(sent) == {"model": "m", "stream_options": {"include_usage": True}}


def test_options_that_are_none_are_the_servers_to_refuse() -> None:
    assert parse_body(b'{"model": "m", "stream_options": 5}').asks_for_usage


@pytest.mark.parametrize("value", [-1, 1.5, True, "7", None, 10**30])
def test_a_strange_number_of_tokens_or_answers_is_the_servers_to_refuse(value: Any) -> None:
    body = parse_body(json.dumps({"model": "m", "max_tokens": value, "n": value}).encode())

    assert (body.max_tokens, body.num_answers) == (None, 1)


def test_lone_surrogates_do_not_break_the_hash() -> None:
    assert parse_body(b'{"model": "m", "prompt": "\\ud800"}').affinity is not None


def test_only_true_streams() -> None:
    streams = [
        parse_body(json.dumps({"model": "m", "stream": value}).encode()).stream for value in (True, False, 1, "true")
    ]

    assert streams == [True, False, False, False]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_body_or_a_bad_request(raw: bytes) -> None:
    try:
        found = parse_body(raw).model
    except BadRequest as error:
        found = str(error.status)

    assert found == "400" or b"model" in raw


def test_a_body_of_countless_small_values_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bytes of JSON become more than fifty in memory."""
    monkeypatch.setattr(request_body, "MAX_VALUES", 1000)

    with pytest.raises(BadRequest, match="limit is 1000") as refusal:
        parse_body(b'{"model": "m", "a": [' + b"[]," * 1000 + b"[]]}")

    assert (refusal.value.status, refusal.value.code) == (413, "request_too_large")


def test_what_was_parsed_is_not_kept() -> None:
    """A request may wait for minutes; beyond its bytes only what routing needs stays in memory."""
    body = parse_body(b'{"model": "m", "prompt": "hi"}')

    assert {type(getattr(body, field.name)) for field in fields(body)} <= {bytes, str, bool, int, type(None)}


@pytest.mark.parametrize("is_whole", [True, False], ids=["with its head", "later"])
@pytest.mark.parametrize(
    ("max_bytes", "budget_bytes", "code"), [(20, 99, "request_too_large"), (99, 20, "gateway_busy")]
)
async def test_a_body_is_under_the_same_bounds_whether_it_comes_with_its_head_or_later(
    max_bytes: int, budget_bytes: int, code: str, is_whole: bool
) -> None:
    """In chunks, so that no length tells beforehand."""
    loop = asyncio.get_running_loop()
    content = StreamReader(BaseProtocol(loop), 2**16, loop=loop)
    request = make_mocked_request("POST", "/v1/completions", payload=content)
    limits = BodyLimits(max_bytes=max_bytes, silence_s=5, whole_s=5)
    content.feed_data(b'{"model": "a model"}  ')
    loop.call_soon(content.feed_eof)
    if is_whole:
        await asyncio.sleep(0)

    with BodyReader(BodyBudget(budget_bytes), limits) as reader, pytest.raises(GatewayError) as refused:
        await reader.read(request)

    assert refused.value.code == code
