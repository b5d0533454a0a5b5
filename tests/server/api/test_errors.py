"""Every error has the one shape, names the field, and hurts nobody; every unknown field is named in a header."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from octavo_server.api.schemas import NOT_SERVED_YET, WITHOUT_MEANING
from octavo_testing.server import NAME, Server, a_chat, a_completion, fake_server

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture
async def server(tokenizer_folder: Path) -> AsyncIterator[Server]:
    async with fake_server(tokenizer_folder, max_request_bytes=20_000) as running:
        yield running


def check(answer: Any, status: int, param: str | None, *words: str) -> None:
    error = answer.json["error"]
    assert (status, {"message", "type", "param", "code"}) == (answer.status, set(error)), error
    assert param == error["param"]
    assert all(word in error["message"] for word in words), error["message"]
    assert len(error["message"]) <= 1000
    assert "Traceback" not in error["message"]
    assert answer.headers["X-Request-Id"]


def an_assistant(**call: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}, **call}]}


def a_tool(name: str = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


MESSAGE = {"role": "user", "content": "hi"}
CASES: list[tuple[str, dict[str, Any], str, tuple[str, ...]]] = [
    (CHAT, a_chat(messages=[]), "messages", ("non-empty",)),
    (CHAT, a_chat(messages="hi"), "messages", ("array",)),
    (CHAT, a_chat(messages=[5]), "messages[0]", ("object",)),
    (CHAT, a_chat(messages=[{"role": "king", "content": "x"}]), "messages[0].role", ("king", "assistant")),
    (CHAT, a_chat(messages=[MESSAGE, {"role": "user"}]), "messages[1].content", ("string",)),
    (CHAT, a_chat(messages=[{"role": "user", "content": "\ud800"}]), "messages[0].content", ("surrogate",)),
    (CHAT, a_chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content[0].type", ()),
    (CHAT, a_chat(messages=[{"role": "tool", "content": "x"}]), "messages[0].tool_call_id", ("id of the call",)),
    (CHAT, a_chat(messages=[{"role": "function", "content": "x"}]), "messages[0].role", ("use role tool",)),
    (CHAT, a_chat(messages=[{"role": "assistant"}]), "messages[0].content", ("tool_calls",)),
    (CHAT, a_chat(messages=[{"role": "assistant", "tool_calls": [5]}]), "messages[0].tool_calls[0].function", ()),
    (CHAT, a_chat(messages=[an_assistant(function={})]), "messages[0].tool_calls[0].function.name", ()),
    (CHAT, a_chat(messages=[an_assistant(type="custom")]), "messages[0].tool_calls[0].type", ("custom",)),
    (
        CHAT,
        a_chat(messages=[an_assistant(function={"name": "f", "arguments": 5})]),
        "messages[0].tool_calls[0].function.arguments",
        ("got 5",),
    ),
    (CHAT, a_chat(temperature=2.5), "temperature", ("2.5", "2")),
    (CHAT, a_chat(temperature="hot"), "temperature", ("'hot'",)),
    (CHAT, a_chat(temperature=True), "temperature", ("true",)),
    (CHAT, a_chat(top_p=0), "top_p", ("above 0",)),
    (CHAT, a_chat(top_p=1.1), "top_p", ("1.1",)),
    (CHAT, a_chat(top_k=-2), "top_k", ("-2",)),
    (CHAT, a_chat(min_p=-0.1), "min_p", ("-0.1",)),
    (CHAT, a_chat(presence_penalty=3), "presence_penalty", ("3",)),
    (CHAT, a_chat(repetition_penalty=0), "repetition_penalty", ("above 0",)),
    (CHAT, a_chat(n=0), "n", ("from 1 to 128",)),
    (CHAT, a_chat(n=129), "n", ("from 1 to 128",)),
    (CHAT, a_chat(n=1.5), "n", ("1.5",)),
    (CHAT, a_chat(seed=2**63), "seed", ()),
    (CHAT, a_chat(max_tokens=0), "max_tokens", ()),
    (CHAT, a_chat(max_tokens=-1), "max_tokens", ()),
    (CHAT, a_chat(max_tokens=600), "max_tokens", ("600", "512")),
    (CHAT, a_chat("long " * 400), "prompt", ("512", "--max-model-len")),
    (CHAT, a_chat(min_tokens=9), "min_tokens", ("9", "8")),
    (CHAT, a_chat(stop=["x"] * 17), "stop", ("16",)),
    (CHAT, a_chat(stop="x" * 257), "stop", ("256",)),
    (CHAT, a_chat(stop=[""]), "stop", ()),
    (CHAT, a_chat(stop=[5]), "stop", ()),
    (CHAT, a_chat(stop_token_ids=[600]), "stop_token_ids", ("600", "512")),
    (CHAT, a_chat(logit_bias={"600": 1}), "logit_bias", ("600", "512")),
    (CHAT, a_chat(logit_bias={"x": 1}), "logit_bias", ()),
    (CHAT, a_chat(logit_bias={"5": 101}), "logit_bias", ("101",)),
    (CHAT, a_chat(top_logprobs=2), "top_logprobs", ("logprobs: true",)),
    (CHAT, a_chat(logprobs=True, top_logprobs=21), "top_logprobs", ("20",)),
    (CHAT, a_chat(stream_options={"include_usage": True}), "stream_options", ("stream: true",)),
    (CHAT, a_chat(stream="yes"), "stream", ()),
    (CHAT, a_chat(stream=True, prompt_logprobs=1), "prompt_logprobs", ("stream",)),
    (CHAT, a_chat(echo=5), "echo", ()),
    (CHAT, a_chat(continue_final_message=True, add_generation_prompt=True), "continue_final_message", ()),
    (CHAT, a_chat(chat_template_kwargs=[1]), "chat_template_kwargs", ()),
    (CHAT, a_chat(chat_template_kwargs={"messages": 1}), "chat_template_kwargs", ("'messages'", "leave it out")),
    (CHAT, a_chat(chat_template_kwargs={"self": 1}), "chat_template_kwargs", ("'self'",)),
    (CHAT, a_chat(priority=5), "priority", ("5", "--scheduling-policy priority")),
    (CHAT, a_chat(stop=0), "stop", ("got 0",)),
    (CHAT, a_chat(stop={}), "stop", ("array",)),
    (CHAT, a_chat(logit_bias=False), "logit_bias", ("got false",)),
    (CHAT, a_chat(logit_bias=[]), "logit_bias", ("object",)),
    ("/tokenize", {"messages": [MESSAGE], "stop_token_ids": [512]}, "stop_token_ids", ("512",)),
    (CHAT, a_chat("long " * 3_000), "prompt", ("characters", "512", "--max-model-len")),
    (COMPLETIONS, a_completion("long " * 3_000), "prompt", ("characters", "512")),
    (CHAT, a_chat(cache_salt=5), "cache_salt", ()),
    (CHAT, a_chat(tools=[{"type": "function"}]), "tools[0].function", ("object",)),
    (CHAT, a_chat(tools=[{"type": "web_search"}]), "tools[0].type", ("web_search", "function")),
    (CHAT, a_chat(tools=[{}] * 129), "tools", ("128",)),
    (CHAT, a_chat(tools=[a_tool(name="a b")]), "tools[0].function.name", ("a b",)),
    (CHAT, a_chat(tools=[a_tool(name="f\n")]), "tools[0].function.name", ()),
    (CHAT, a_chat(tools=[a_tool(), a_tool()]), "tools", ("tools[1]", "'f'")),
    (CHAT, a_chat(tools=[a_tool(parameters=[])]), "tools[0].function.parameters", ("JSON Schema",)),
    (CHAT, a_chat(tools=[a_tool(parameters={"type": "string"})]), "tools[0].function.parameters", ()),
    (CHAT, a_chat(tools=[a_tool(parameters={"properties": 5})]), "tools[0].function.parameters", ("properties",)),
    (
        CHAT,
        a_chat(tools=[a_tool(parameters={"properties": {"city": "string"}})]),
        "tools[0].function.parameters",
        ("properties.city", "object"),
    ),
    (CHAT, a_chat(tools=[a_tool(parameters={"x": "\ud800"})]), "tools[0]", ("surrogate",)),
    (CHAT, a_chat(documents=[{"text": "\ud800"}]), "documents", ("surrogate",)),
    (
        CHAT,
        a_chat(messages=[an_assistant(function={"name": "f", "arguments": {"a": "\ud800"}})]),
        "messages[0].tool_calls[0].function.arguments",
        ("surrogate",),
    ),
    (CHAT, a_chat(tools=[a_tool()]), "tools", ("chat template does not know tools",)),
    (CHAT, a_chat(tool_choice="required"), "tool_choice", ("no tools",)),
    (CHAT, a_chat(tools=[a_tool()], tool_choice="always"), "tool_choice", ("always",)),
    (CHAT, a_chat(tools=[a_tool()], tool_choice={"type": "f"}), "tool_choice.type", ()),
    (CHAT, a_chat(tools=[a_tool()], tool_choice=a_tool(name="g")), "tool_choice.function.name", ("'g'", "tools")),
    (CHAT, a_chat(functions=[{"name": "f"}]), "functions", ("use tools",)),
    (CHAT, a_chat(function_call={"name": "f"}), "function_call", ("use tool_choice",)),
    (CHAT, a_chat(chat_template="{{ 1 }}"), "chat_template", ("--chat-template",)),
    (CHAT, a_chat(documents=[5]), "documents", ()),
    (CHAT, a_chat(documents=[{"text": "x"}]), "documents", ("does not read documents",)),
    (CHAT, a_chat(reasoning_effort="much"), "reasoning_effort", ("much", "medium")),
    (CHAT, a_chat(stream=True, stream_options={"other": 1}), "stream_options.other", ()),
    (CHAT, {"messages": [MESSAGE]}, "model", ("missing",)),
    (COMPLETIONS, {"model": NAME}, "prompt", ()),
    (COMPLETIONS, a_completion([]), "prompt", ()),
    (COMPLETIONS, a_completion(""), "prompt", ("0 tokens",)),
    (COMPLETIONS, a_completion([5, "x"]), "prompt", ()),
    (COMPLETIONS, a_completion([[]]), "prompt", ()),
    (COMPLETIONS, a_completion([5, 512]), "prompt", ("512",)),
    (COMPLETIONS, a_completion([-1]), "prompt", ("-1",)),
    (COMPLETIONS, a_completion([10**30]), "prompt", ()),
    (COMPLETIONS, a_completion(suffix="x"), "suffix", ("not supported yet",)),
    (COMPLETIONS, a_completion(best_of=2), "best_of", ("not supported yet",)),
    (COMPLETIONS, a_completion(logprobs=21), "logprobs", ()),
    (COMPLETIONS, a_completion(max_tokens=0), "max_tokens", ("echo",)),
    (COMPLETIONS, a_completion(echo=True, logprobs=1, stream=True), "echo", ("stream",)),
    ("/tokenize", {"prompt": 5}, "prompt", ()),
    ("/detokenize", {"tokens": [512]}, "tokens", ("511",)),
    ("/detokenize", {}, "tokens", ()),
]


@pytest.mark.parametrize(("path", "body", "param", "words"), CASES)
async def test_a_bad_value_is_a_400_that_names_its_field(
    server: Server, path: str, body: dict[str, Any], param: str, words: tuple[str, ...]
) -> None:
    check(await server.post(path, body), 400, param, *words)


async def test_nothing_is_left_after_all_of_them(server: Server) -> None:
    for path, body, _, _ in CASES:
        await server.post(path, body)

    assert 0 == server.state.engine.num_unfinished == server.state.num_active
    assert (await server.get("/health")).status == 200
    assert (await server.post(CHAT, a_chat())).status == 200
    refused = sum(path in (CHAT, COMPLETIONS) for path, *_ in CASES)
    assert refused == await server.metric("octavo_rejected_requests_total", reason="invalid_value")


@pytest.mark.parametrize("field", sorted(set(NOT_SERVED_YET)))
async def test_a_known_field_that_is_not_served_yet_is_named(server: Server, field: str) -> None:
    check(await server.post(CHAT, a_chat(**{field: {"some": "value"}})), 400, field, "not supported yet")


@pytest.mark.parametrize(("field", "value"), [(name, v) for name, values in NOT_SERVED_YET.items() for v in values])
async def test_its_neutral_values_and_null_are_accepted_without_a_warning(
    server: Server, field: str, value: Any
) -> None:
    for given in (value, None):
        answer = await server.post(CHAT, a_chat(**{field: given}))
        assert (answer.status, answer.headers.get("X-Octavo-Ignored")) == (200, None), answer.body


@pytest.mark.parametrize("field", WITHOUT_MEANING)
async def test_openais_bookkeeping_fields_are_accepted_without_a_warning(server: Server, field: str) -> None:
    answer = await server.post(CHAT, a_chat(**{field: "x"}))

    assert (answer.status, answer.headers.get("X-Octavo-Ignored")) == (200, None)


@pytest.mark.parametrize("stream", [False, True])
async def test_unknown_fields_are_ignored_and_named(server: Server, stream: bool) -> None:
    answer = await server.post(CHAT, a_chat(zebra=1, apple=2, stream=stream))

    assert (answer.status, answer.headers["X-Octavo-Ignored"]) == (200, "apple, zebra")


async def test_unknown_fields_of_messages_are_named_unless_they_are_empty(server: Server) -> None:
    sent_back = {
        "role": "assistant",
        "content": "a",
        "refusal": None,
        "annotations": [],
        "reasoning_content": "hm",
        "anger": 1,
    }

    answer = await server.post(CHAT, a_chat(messages=[sent_back, {**MESSAGE, "mood": "sad"}], zebra=1))

    assert answer.headers["X-Octavo-Ignored"] == "zebra, messages[0].anger, messages[1].mood"


async def test_tokenize_names_ignored_fields_as_safely(server: Server) -> None:
    answer = await server.post("/tokenize", {"prompt": "a", "zebra": 1, "new\r\nline": 1, "ünïcode": 1})

    assert (answer.status, answer.headers["X-Octavo-Ignored"]) == (200, "zebra")


async def test_the_header_of_ignored_fields_is_bounded_and_safe(server: Server) -> None:
    many = {f"field_{number:04}": 1 for number in range(500)}

    answer = await server.post(CHAT, a_chat(**many, **{"new\r\nline": 1, "ünïcode": 1}))

    assert answer.status == 200
    assert len(answer.headers["X-Octavo-Ignored"]) <= 1024
    assert answer.headers["X-Octavo-Ignored"].startswith("field_0000, field_0001")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b'"x"',
        b"\xff",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1' + b"0" * 5000 + b"}",
        b'{"a":' * 3000,
    ],
)
async def test_a_body_that_is_no_json_object_is_a_400(server: Server, raw: bytes) -> None:
    headers = {"Content-Type": "application/json"}

    async with server.session.post(server.url + CHAT, data=raw, headers=headers) as response:
        error = json.loads(await response.read())["error"]

    assert (response.status, error["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("headers", "status", "said"),
    [
        ({"Content-Type": "application/json; charset=utf-16"}, 415, "charset is utf-16"),
        ({"Content-Type": "application/json; charset=UTF-8"}, 200, ""),
        ({"Content-Type": "application/json", "Content-Encoding": "rot13"}, 415, "encoding is rot13"),
        ({"Content-Type": "application/json", "Content-Encoding": "Identity"}, 200, ""),
    ],
)
async def test_another_charset_or_encoding_is_a_415(
    headers: dict[str, str], status: int, said: str, server: Server
) -> None:
    body = json.dumps(a_chat()).encode()
    async with server.session.post(server.url + "/v1/chat/completions", data=body, headers=headers) as response:
        assert response.status == status
        assert said in await response.text()


async def test_another_content_type_is_a_415(server: Server) -> None:
    async with server.session.post(server.url + CHAT, data=b"x", headers={"Content-Type": "text/plain"}) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (415, "media_type")


async def test_a_body_over_the_limit_is_a_413(server: Server) -> None:
    check(await server.post(CHAT, a_chat("x" * 30_000)), 413, None, "--max-request-bytes")


async def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(server: Server) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n".encode()

    status, error = await exchange(server, head, until_closed=False)

    assert (status, error["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 20,
        b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: " + b"y" * 20_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(2000)) + b"\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    ],
)
async def test_what_is_no_http_is_a_400_of_the_one_shape(
    server: Server, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    status, error = await exchange(server, sent)

    assert (status, error["code"]) == (400, "invalid_http")
    assert len(error["message"]) < 300
    assert not caplog.records, "strangers may not fill the log"


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ("Content-Encoding: gzip", b"abc", 400, "invalid_body"),
        ("Expect: a miracle", b"abc", 417, "expectation"),
        ("Expect: 100-continue", b"{{{", 400, "invalid_json"),
    ],
)
async def test_a_body_that_is_not_what_its_headers_say(
    server: Server, headers: str, body: bytes, status: int, code: str
) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{headers}\r\n\r\n"

    found, error = await exchange(server, head.encode() + body)

    assert (found, error["code"]) == (status, code)


async def test_what_fails_outside_of_any_handler_is_a_500_of_the_one_shape(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: str) -> str:
        raise RuntimeError("secret")

    monkeypatch.setattr("octavo_server.api.middleware._clean_id", fail)

    status, error = await exchange(server, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")

    assert (status, error["code"]) == (500, "internal_error")
    assert "secret" not in error["message"]
    assert "secret" in caplog.text


async def test_a_body_that_stops_coming_is_a_408(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo_server.api.body.READ_TIMEOUT_S", 0.05)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode()

    status, error = await exchange(server, head, until_closed=False)

    assert (status, error["code"]) == (408, "request_timeout")


async def test_a_head_that_stops_coming_closes_the_connection(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo_server.api.connection.IDLE_TIMEOUT_S", 0.05)
    async with fake_server(tokenizer_folder) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nX-A")

        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def exchange(server: Server, sent: bytes, *, until_closed: bool = True) -> tuple[int, dict[str, Any]]:
    """Sends raw bytes; the answer's status and error."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(sent)
        async with asyncio.timeout(10):
            answer = (await reader.read() if until_closed else await reader.readuntil(b"}}")).decode()
    finally:
        writer.close()
    head, _, body = answer.removeprefix("HTTP/1.1 100 Continue\r\n\r\n").partition("\r\n\r\n")
    assert "x-request-id" in head.lower()
    assert "application/json" in head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(head.split()[1]), error


async def test_an_unknown_path_is_a_404_and_a_wrong_method_a_405(server: Server) -> None:
    check(await server.get("/v1/nothing"), 404, None)
    wrong = await server.get(CHAT)
    check(wrong, 405, None, "POST")
    assert wrong.headers["Allow"] == "POST"


async def test_an_unknown_model_is_a_404_that_names_those_that_are_served(server: Server) -> None:
    check(await server.post(CHAT, a_chat(model="gpt-5")), 404, "model", "gpt-5", NAME)
    check(await server.get("/v1/models/gpt-5"), 404, "model", "gpt-5")


async def test_keys_protect_what_generates_and_nothing_else(tokenizer_folder: Path) -> None:
    async with fake_server(tokenizer_folder, api_key=("k1", "k2")) as server:
        for path in ("/v1/models", CHAT, "/tokenize"):
            check(await server.post(path, {}), 401, None, "Bearer")
        for key in ("k", "k11", "", "Bearer k1"):
            check(await server.get("/v1/models", headers={"Authorization": f"Bearer {key}"}), 401, None)
        check(await server.get("/v1/models", headers={"Authorization": "Basic k1"}), 401, None)
        for key in ("k1", "k2"):
            assert (await server.get("/v1/models", headers={"Authorization": f"Bearer {key}"})).status == 200
        for path in ("/health", "/ready", "/startup", "/metrics", "/load"):
            assert (await server.get(path)).status == 200


@pytest.mark.parametrize(("given", "echoed"), [("my-id_1", True), ("x" * 129, False), ("a b\tc", False), ("ä", False)])
async def test_a_request_id_is_echoed_once_or_made(server: Server, given: str, echoed: bool) -> None:
    async with server.session.get(server.url + "/health", headers={"X-Request-Id": given}) as response:
        ids = response.headers.getall("X-Request-Id")

    assert len(ids) == 1
    assert echoed == (ids[0] == given)


async def test_a_failing_request_is_a_500_without_details_and_an_event_in_a_stream(server: Server) -> None:
    from octavo_testing.server import POISON

    whole = await server.post(COMPLETIONS, a_completion([POISON]))
    streamed = await server.post(COMPLETIONS, a_completion([POISON], stream=True))

    check(whole, 500, None, "log")
    assert streamed.status == 200
    assert {"message", "type", "param", "code"} == set(streamed.events[-1]["error"])
    assert "poison" not in whole.body.decode() + streamed.body.decode()


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
async def test_adapters_are_refused_by_name(server: Server, path: str) -> None:
    answer = await server.post(path, {"lora_name": "a", "lora_path": "/a"})

    assert answer.status == 400
    assert "not supported yet" in answer.json["error"]["message"]
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}


async def test_a_body_that_nobody_reads_and_that_is_no_gzip_ends_the_connection_and_is_no_failure_of_ours(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """With head and body in one segment the answer says that it is the last; after it no next request could be found."""
    head = b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head + b"plain")
    whole = await asyncio.wait_for(reader.read(), timeout=10)
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head)
    await reader.readuntil(b"}")
    writer.write(b"plain")
    rest = await asyncio.wait_for(reader.read(), timeout=10)
    writer.close()

    assert whole.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Connection: close\r\n" in whole
    assert rest == b""
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_whole_number_has_two_spellings_in_json_and_both_are_token_ids(server: Server) -> None:
    answers = [
        await server.post(COMPLETIONS, a_completion(prompt, stop_token_ids=[5.0], seed=1))
        for prompt in ([7, 8], [7.0, 8.0], [[7.0, 8]])
    ]

    assert len({answer.json["choices"][0]["text"] for answer in answers}) == 1
    assert (await server.post("/detokenize", {"tokens": [70.0]})).status == 200
    check(await server.post(COMPLETIONS, a_completion([7.5])), 400, "prompt")
    check(await server.post("/detokenize", {"tokens": [True]}), 400, "tokens")


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/v1/score", "/v1/rerank"])
async def test_where_the_model_may_be_left_out_an_empty_one_is_unknown(server: Server, path: str) -> None:
    body = {"prompt": "a", "tokens": [5], "query": "a", "documents": ["b"]}
    if path == "/v1/score":
        body = {"text_1": "a", "text_2": "b"}

    answer = await server.post(path, {**body, "fancy": 1})
    check(await server.post(path, {**body, "model": ""}), 404, "model")

    assert answer.status == 200
    assert "fancy" in answer.headers["X-Octavo-Ignored"]


@pytest.mark.parametrize("fields", [{"use_beam_search": 0}, {"best_of": True}])
async def test_true_is_not_one_where_only_a_neutral_value_is_taken(server: Server, fields: dict[str, Any]) -> None:
    check(await server.post(COMPLETIONS, a_completion(**fields)), 400, next(iter(fields)), "not supported yet")


async def test_a_schema_that_would_not_be_followed_is_refused(server: Server) -> None:
    body = a_chat(response_format={"type": "json_object", "json_schema": {"schema": {"type": "object"}}})

    check(await server.post(CHAT, body), 400, "response_format.json_schema", "json_object")
