"""What a replica may answer instead of an answer: each is a 502 or what it was worth, and harms no other request."""

from __future__ import annotations

import asyncio
import logging

import pytest

from octavo_gateway import proxy
from octavo_testing.gateway import a_gateway, a_model, a_request, an_upstream_saying, read_answer

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
WHOLE = b"Content-Length: 2\r\n\r\n{}"
REQUEST = a_request(b'{"model": "m"}', "Connection: keep-alive")
NEXT = a_request(b'{"model": "next"}')

NO_ANSWERS = {
    "a tunnel": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhello",
    "a status below all": b"HTTP/1.1 099 Hm\r\n" + WHOLE,
    "a status of zero": b"HTTP/1.1 000 Hm\r\n" + WHOLE,
    "a status beyond all": b"HTTP/1.1 999 Hm\r\n" + WHOLE,
    "a control character in a header": OK + b"X: a\x01b\r\n" + WHOLE,
    "a header in a header": OK + b"X: a\rY: b\r\n" + WHOLE,
    "no HTTP": b"hello\r\n\r\n",
    "an unknown version": b"HTTP/9.9 200 OK\r\n" + WHOLE,
    "headers without end": OK + b"".join(b"X-%d: 1\r\n" % number for number in range(5000)),
    "a header without end": OK + b"X: " + b"a" * 100_000,
    "two lengths": OK + b"Content-Length: 9\r\n" + WHOLE,
    "a length and chunks": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 100\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a negative length": OK + b"Content-Length: -1\r\n\r\n{}",
}


@pytest.mark.parametrize("said", NO_ANSWERS.values(), ids=NO_ANSWERS)
async def test_what_is_no_answer_is_a_502_and_the_connection_goes_on(
    said: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(proxy, "MAX_DISCONNECTS", 1)
    async with an_upstream_saying(said) as replica, a_gateway(a_model("m", replica)) as bench:
        answers = await bench.talk(REQUEST, NEXT)

    status, answer = read_answer(answers)
    assert (status, answer["error"]["code"]) == (502, "upstream_failed")
    assert b"HTTP/1.1 404 Not Found" in answers
    assert [record for record in caplog.records if record.levelno > logging.WARNING] == []


async def test_a_broken_answer_counts_against_its_replica() -> None:
    async with an_upstream_saying(NO_ANSWERS["a tunnel"]) as replica, a_gateway(a_model("m", replica)) as bench:
        await bench.ask()

        assert await bench.metric('octavo_gateway_upstream_errors_total{model="default/m",reason="broken"}') == 1


async def test_answers_before_the_answer_do_not_reach_the_client() -> None:
    said = b"HTTP/1.1 103 Early Hints\r\n\r\n" * 50 + OK + WHOLE
    async with an_upstream_saying(said) as replica, a_gateway(a_model("m", replica)) as bench:
        answers = await bench.talk(a_request())

    assert read_answer(answers) == (200, {})
    assert answers.count(b"HTTP/1.1") == 1


async def test_a_stream_that_ends_at_any_byte_ends_with_one_error_event_at_the_client() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    event = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'
    chunk = b"%x\r\n" % len(event) + event + b"\r\n"

    async def ask(said: bytes) -> bytes:
        async with an_upstream_saying(said) as replica, a_gateway(a_model("m", replica)) as bench:
            return await bench.talk(a_request(b'{"model": "m", "stream": true}'))

    answers = await asyncio.gather(*(ask(head + (chunk * 2)[:end]) for end in range(4, 2 * len(chunk), 9)))

    for answer in answers:
        assert answer.count(b'data: {"error"') == answer.count(b"data: [DONE]") == 1, answer
        assert answer.endswith(b"0\r\n\r\n")
