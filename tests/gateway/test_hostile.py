"""What strangers send: no HTTP, two lengths at once, odd paths, bombs. Each is refused in one shape, and reaches nobody."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import resource
import zlib

import pytest

from octavo_gateway.logs import TextFormatter
from octavo_testing.gateway import CHAT, a_gateway, a_model, a_request, an_upstream, read_answer

BODY = b'{"model": "m"}'
CHUNKED = b"e\r\n" + BODY + b"\r\n0\r\n\r\n"


def with_headers(*lines: str, body: bytes = BODY) -> bytes:
    return "\r\n".join([f"POST {CHAT} HTTP/1.1", "Host: x", *lines, "", ""]).encode("latin-1") + body


NO_HTTP = {
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 50,
    "an unknown method": a_request(method="FOO"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an unknown version": a_request(version="HTTP/3.0"),
    "line ends without CR": a_request().replace(b"\r\n", b"\n"),
    "a length and chunks": with_headers("Content-Length: 5", "Transfer-Encoding: chunked", body=CHUNKED),
    "chunks and a length": with_headers("Transfer-Encoding: chunked", "Content-Length: 5", body=CHUNKED),
    "two lengths": with_headers("Content-Length: 14", "Content-Length: 5"),
    "a length with a sign": with_headers("Content-Length: +14"),
    "a length below zero": with_headers("Content-Length: -1"),
    "a length beyond 64 bits": with_headers("Content-Length: " + "9" * 30),
    "a coding that is none": with_headers("Transfer-Encoding: xchunked", body=CHUNKED),
    "a coding before a space": with_headers("Transfer-Encoding : chunked", body=CHUNKED),
    "chunks of no size": with_headers("Transfer-Encoding: chunked", body=b"zz\r\n" + BODY),
    "chunks of a strange size": with_headers("Transfer-Encoding: chunked", body=b"0x" + CHUNKED),
    "a folded header": with_headers("X-A: b", " c", "Content-Length: 14"),
    "a NUL in a header": with_headers("X-A: a\0b", "Content-Length: 14"),
    "no host": a_request().replace(b"Host: x\r\n", b""),
    "two hosts": with_headers("Host: y", "Content-Length: 14"),
}


@pytest.mark.parametrize("sent", NO_HTTP.values(), ids=NO_HTTP)
async def test_what_is_no_http_is_a_400_in_our_shape_and_ends_the_connection(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A second request behind it is never looked at: it might be the body of the first (request smuggling)."""
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        answer = await bench.talk(sent, a_request())

    status, error = read_answer(answer)
    assert (status, error["error"]["code"]) == (400, "invalid_http")
    assert set(error["error"]) == {"message", "type", "param", "code"}
    assert answer.count(b"HTTP/1.") == 1
    assert upstream.requests == 0
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


async def test_a_body_that_nobody_reads_and_that_is_none_is_no_fault_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    async with a_gateway(a_model("m")) as bench:
        answer = await bench.talk(a_request(b"no such coding", "Content-Encoding: gzip", path="/nowhere"))

    assert read_answer(answer)[0] == 404
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


async def test_the_refusal_of_a_header_does_not_repeat_it() -> None:
    async with a_gateway(a_model("m")) as bench:
        answer = await bench.talk(with_headers("Authorization: Bearer sk-secret\0", "Content-Length: 14"))

    assert read_answer(answer)[0] == 400
    assert b"sk-secret" not in answer


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (with_headers("X-A: " + "a" * 9000), "8190 bytes"),
        (a_request(path="/v1/" + "a" * 9000), "8190 bytes"),
        (with_headers(*(f"X-{number}: 1" for number in range(200))), "128 headers"),
    ],
    ids=["a long header", "a long path", "many headers"],
)
async def test_a_head_that_is_too_large_is_a_431_that_says_which_limit(sent: bytes, says: str) -> None:
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        status, answer = read_answer(await bench.talk(sent))

    assert (status, answer["error"]["code"]) == (431, "headers_too_large")
    assert says in answer["error"]["message"]
    assert upstream.requests == 0


async def test_the_limits_of_a_head_are_flags() -> None:
    async with a_gateway(a_model("m"), max_headers=10, max_header_bytes=100) as bench:
        many = read_answer(await bench.talk(with_headers(*(f"X-{number}: 1" for number in range(20)))))
        long = read_answer(await bench.talk(with_headers("X-A: " + "a" * 200)))

    assert (many[0], long[0]) == (431, 431)
    assert "10 headers" in many[1]["error"]["message"]
    assert "100 bytes" in long[1]["error"]["message"]


async def test_a_header_without_an_end_is_refused_before_all_of_it_has_come() -> None:
    async with a_gateway(a_model("m")) as bench:
        status, _ = read_answer(await bench.talk(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nX-A: ".encode(), b"a" * 20_000))

    assert status == 431


@pytest.mark.parametrize(
    "path",
    [
        "//v1/chat/completions",
        "/v1//chat/completions",
        "/v1/../v1/chat/completions",
        "/v1/../metrics",
        "/v1/x/../../tokenize",
        "/v1/..%2fmetrics",
        "/v1/%2e%2e/metrics",
        "/v1/chat%2fcompletions",
        "/v1/chat/completions/",
        "/v1/chat/completions;a=b",
        "/v1/a%00",
        "/v1/a%0d%0aX-Evil:%20b",
        "/v1/@evil.example/x",
        "/v1/%zz",
        "/v1\\..\\metrics",
        "http://evil.example/../v1/chat/completions",
    ],
)
async def test_a_path_that_is_not_plainly_ours_is_a_404_and_reaches_no_replica(path: str) -> None:
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        status, answer = read_answer(await bench.talk(a_request(path=path)))

    assert (status, answer["error"]["type"]) == (404, "invalid_request_error")
    assert upstream.requests == 0


async def test_an_absolute_address_is_a_path_here_and_its_host_is_nobody_to_ask() -> None:
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        status, _ = read_answer(await bench.talk(a_request(path=f"http://evil.example{CHAT}?a=b#c")))

    assert (status, upstream.requests) == (200, 1)
    assert upstream.headers[0]["Host"] == upstream.url.removeprefix("http://")


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "OPTIONS", "PUT", "DELETE"])
async def test_other_methods_are_refused(method: str) -> None:
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        status, answer = read_answer(await bench.talk(a_request(b"", method=method)))

    assert (status in (404, 405), upstream.requests) == (True, 0)
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
async def test_another_protocol_is_not_taken_up_and_what_follows_is_http(protocol: str) -> None:
    upgrade = a_request(BODY, "Connection: Upgrade", f"Upgrade: {protocol}", "Sec-WebSocket-Version: 13")
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.gateway.port)
        writer.write(upgrade)
        first = await reader.readuntil(b"}")
        writer.write(a_request())
        second = await reader.read()
        writer.close()

    assert [answer.split(b"\r\n")[0] for answer in (first, second)] == [b"HTTP/1.1 200 OK"] * 2
    assert [name for name in ("Upgrade", "Connection") if name in upstream.headers[0]] == []


async def test_requests_behind_each_other_on_one_connection_are_answered_in_their_order() -> None:
    keep = "Connection: keep-alive"
    bodies = [json.dumps({"model": "m", "number": number}).encode() for number in range(20)]
    requests = b"".join(a_request(body, keep) for body in bodies)
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        answer = await bench.talk(requests, a_request(b'{"model": "nobody"}'))

    assert answer.count(b"HTTP/1.1 200 OK") == 20
    assert answer.index(b"HTTP/1.1 404") > answer.rindex(b"HTTP/1.1 200 OK")
    assert upstream.bodies == bodies


async def test_a_client_that_asks_first_is_told_to_go_on_or_why_not() -> None:
    expects = "Connection: close", "Expect: 100-continue"
    async with (
        an_upstream() as upstream,
        a_gateway(a_model("m", upstream.replica()), max_request_bytes=1000) as bench,
    ):
        welcome = await bench.talk(a_request(BODY, *expects))
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.gateway.port)
        writer.write(a_request(b"", *expects, "Content-Length: 2000", announced=False))
        too_large = await reader.readuntil(b"}}")
        writer.close()
        odd = await bench.talk(a_request(BODY, "Connection: close", "Expect: 200-ok"))
        old = await bench.talk(a_request(BODY, *expects, version="HTTP/1.0"))

    assert welcome.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
    assert (read_answer(too_large)[0], read_answer(too_large)[1]["error"]["code"]) == (413, "request_too_large")
    assert (read_answer(odd)[0], read_answer(odd)[1]["error"]["code"]) == (417, "bad_expect")
    assert old.startswith(b"HTTP/1.0 200 OK"), "HTTP/1.0 knows no 100"
    assert upstream.requests == 2


def deflated(size: int) -> bytes:
    """So many zeros in a thousandth of the bytes."""
    return gzip.compress(b'{"model": "m", "pad": "' + b"0" * size, compresslevel=9)


async def test_a_bomb_is_refused_when_what_came_out_of_it_is_over_the_limit() -> None:
    """128 MiB in 128 KiB: neither inflated whole nor kept."""
    bomb = b"".join([deflated(0)[:10], zlib_of(2**27), b"\0" * 8])
    async with (
        an_upstream() as upstream,
        a_gateway(a_model("m", upstream.replica()), max_request_bytes=2**20) as bench,
    ):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer = await bench.send("POST", CHAT, data=bomb, headers={"Content-Encoding": "gzip"})
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    assert (answer.status, answer.error["code"], upstream.requests) == (413, "request_too_large", 0)
    assert grown_kib < 32 * 1024


def zlib_of(size: int) -> bytes:
    """So many zeros, as the body of a gzip member."""
    maker = zlib.compressobj(9, wbits=-15)
    return b"".join(maker.compress(bytes(2**20)) for _ in range(size // 2**20)) + maker.flush()


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_body_that_its_coding_does_not_fit_is_a_400(coding: str) -> None:
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        status, answer = read_answer(await bench.talk(a_request(b"no such coding", f"Content-Encoding: {coding}")))

    assert (status, answer["error"]["code"], upstream.requests) == (400, "invalid_body", 0)


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "rot13"])
async def test_a_coding_that_is_not_supported_is_a_415_that_names_those_that_are(coding: str) -> None:
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        status, answer = read_answer(
            await bench.talk(a_request(BODY, "Connection: keep-alive", f"Content-Encoding: {coding}"))
        )

    assert (status, answer["error"]["code"], upstream.requests) == (415, "unsupported_encoding", 0)
    assert "gzip or deflate" in answer["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "m"}'.encode("utf-16"),
        '{"model": "m"}'.encode("utf-8-sig"),
        '{"model": "m"}'.encode("utf-32"),
        b'{"model": "m", "x": "\xff"}',
        b'{"model": "m", "x": ' + b"9" * 5000 + b"}",
        b'{"model": "m"} {"model": "m"}',
        b'{"model": "m",}',
        b"null",
        b"",
    ],
    ids=[
        "UTF-16",
        "a byte order mark",
        "UTF-32",
        "no UTF-8",
        "a huge number",
        "two objects",
        "a comma",
        "null",
        "none",
    ],
)
async def test_a_body_that_is_no_json_object_in_utf_8_is_a_400(body: bytes) -> None:
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        status, answer = read_answer(await bench.talk(a_request(body)))

    assert (status, answer["error"]["code"], upstream.requests) == (400, "invalid_json", 0)


async def test_a_form_is_a_415_that_says_where_the_model_is_looked_for() -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x--\r\n'
    sent = a_request(form, "Content-Type: multipart/form-data; boundary=x", path="/v1/audio/transcriptions")
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        status, answer = read_answer(await bench.talk(sent))

    assert (status, answer["error"]["code"], upstream.requests) == (415, "unsupported_media_type", 0)
    assert "send JSON" in answer["error"]["message"]


async def test_of_a_field_that_is_there_twice_the_last_one_counts_and_nobody_can_read_another() -> None:
    async with (
        an_upstream() as one,
        an_upstream() as two,
        a_gateway(a_model("a", one.replica()), a_model("b", two.replica(), served_names=("b",))) as bench,
    ):
        plain = await bench.send("POST", CHAT, data=b'{"model": "a", "model": "b"}')
        renamed = await bench.send("POST", CHAT, data=b'{"model": "a", "model": "default/b"}')

    assert (plain.status, renamed.status, one.requests) == (200, 200, 0)
    assert [json.loads(body)["model"] for body in two.bodies] == ["b", "b"]
    assert two.bodies[1].count(b"model") == 1


async def test_a_models_name_breaks_neither_a_header_nor_a_metric() -> None:
    name = 'a\r\nX-Evil: 1\0"} 1\noctavo_gateway_requests_total{model="evil"} 7\x1b[31m'
    async with a_gateway(a_model("m")) as bench:
        answer = await bench.ask(name)
        _, metrics = await bench.internal("/metrics")

    assert (answer.status, answer.error["param"]) == (404, "model")
    assert "X-Evil" not in answer.headers
    assert "evil" not in metrics.lower()


def test_a_field_of_a_log_line_cannot_begin_another_line() -> None:
    record = logging.makeLogRecord({"msg": "done", "path": "/a\nfake line\r\x1b[31m\u2028", "name": "x"})

    line = TextFormatter().format(record)

    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


async def test_a_connection_header_takes_no_field_away_that_the_gateway_goes_by() -> None:
    headers = "Connection: close, Authorization, X-Request-Id, X-Forwarded-For", "Authorization: Bearer k"
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        status, _ = read_answer(await bench.talk(a_request(BODY, *headers, "X-Forwarded-For: 1.2.3.4")))

    (arrived,) = upstream.headers
    assert status == 200
    assert (arrived["X-Forwarded-For"], len(arrived["X-Request-Id"])) == ("127.0.0.1", 32)


async def test_many_garbage_connections_at_once_leave_the_gateway_as_it_was() -> None:
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        answers = await asyncio.gather(*(bench.talk(sent) for sent in list(NO_HTTP.values()) * 5))
        good = await bench.ask()

    assert {read_answer(answer)[0] for answer in answers} == {400}
    assert good.status == 200
