"""Requests through a real gateway to real upstreams: who gets them, what passes through, what is answered to mistakes."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from octavo_gateway import call
from octavo_gateway.endpoints import RoutingTable
from octavo_testing.gateway import CHAT, a_gateway, a_model, an_upstream, answering, streaming, until


async def test_a_request_goes_to_the_replica_of_its_model() -> None:
    async with (
        an_upstream(answering("one")) as one,
        an_upstream(answering("two")) as two,
        a_gateway(a_model("a", one.replica()), a_model("b", two.replica())) as bench,
    ):
        answers = [(await bench.ask(model)).json["text"] for model in ("a", "b", "a")]

    assert answers == ["one", "two", "one"]


async def test_any_v1_post_with_a_model_and_those_of_rankings_are_routed_and_their_query_kept() -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.raw_path)
        return web.json_response({})

    async with an_upstream(handler) as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        paths = ["/v1/completions", "/v1/embeddings", "/v1/rerank?x=1&y=2", "/v2/rerank", "/rerank", "/score"]
        for path in paths:
            await bench.send("POST", path, json={"model": "m"})
        wrong = [await bench.send("GET", path) for path in ("/v1/embeddings", "/v2/rerank")]

    assert seen == paths
    assert [answer.status for answer in wrong] == [405, 405]


async def test_the_body_arrives_byte_by_byte_as_it_was_sent() -> None:
    body = b'{ "model":"m",  "x": 1.00, "\\u00e9": "\xc3\xa9" }'
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        await bench.send("POST", CHAT, data=body)

    assert upstream.bodies == [body]


async def test_namespace_and_name_reaches_the_server_under_its_own_name() -> None:
    async with (
        an_upstream() as upstream,
        a_gateway(a_model("m", upstream.replica(), served_names=("chat", "alias"))) as bench,
    ):
        await bench.ask("default/m", temperature=0)

    assert json.loads(upstream.bodies[0]) == {"model": "chat", "temperature": 0}


async def test_turns_of_a_chat_stay_together_under_each_of_the_models_names_and_chats_spread() -> None:
    """Two gateways that know nothing of each other send every turn to the same replica."""
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(an_upstream()) for _ in range(3)]
        replicas = [upstream.replica(f"m-{number}") for number, upstream in enumerate(upstreams)]
        model = a_model("m", *replicas, served_names=("m", "alias"))
        gateways = [await stack.enter_async_context(a_gateway(model)) for _ in range(2)]
        homes: list[int] = []
        for chat in range(12):
            first = [{"role": "user", "content": f"question {chat}"}]
            later = [*first, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "and?"}]
            before = [upstream.requests for upstream in upstreams]
            await gateways[0].ask("m", messages=first)
            await gateways[1].ask("alias", messages=later)
            await gateways[1].ask("default/m", messages=later)
            answered = [upstream.requests - count for upstream, count in zip(upstreams, before, strict=True)]
            assert sorted(answered) == [0, 0, 3]
            homes.append(answered.index(3))

    assert len(set(homes)) > 1


async def test_under_load_all_turns_spill_over_to_one_replica_at_every_gateway_and_come_home_after_it() -> None:
    """And a replica that goes takes only its own conversations with it; images and tools in the first message too."""
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(an_upstream()) for _ in range(3)]
        replicas = [upstream.replica(f"m-{number}") for number, upstream in enumerate(upstreams)]
        gateways = [await stack.enter_async_context(a_gateway(a_model("m", *replicas))) for _ in range(2)]
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9000}}
        chats = [
            [{"role": "user", "content": [image, {"type": "text", "text": f"picture {number}?"}]}]
            for number in range(9)
        ]
        later = [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "and?"}]

        async def homes() -> list[int]:
            found = []
            for chat in chats:
                before = [upstream.requests for upstream in upstreams]
                await gateways[0].ask(messages=chat, tools=[])
                await gateways[1].ask(messages=[*chat, *later], tools=[])
                took = [upstream.requests - count for upstream, count in zip(upstreams, before, strict=True)]
                assert sorted(took) == [0, 0, 2]
                found.append(took.index(2))
            return found

        async def press(number: int, pressure: float) -> None:
            upstreams[number].load = {"pressure": pressure, "running": 8, "waiting": 0}
            url = upstreams[number].url
            for bench in gateways:
                await until(lambda bench=bench: bench.gateway.router.balancer.score(url) == pressure)  # type: ignore[misc]

        calm = await homes()
        busy_one = calm[0]
        await press(busy_one, 5.0)
        busy = await homes()
        await press(busy_one, 0.0)
        after = await homes()
        for bench in gateways:
            bench.set_models(a_model("m", *(each for each in replicas if each != replicas[busy_one])))
        gone = await homes()

    assert after == calm
    assert len(set(calm)) > 1
    for was, pressed, left in zip(calm, busy, gone, strict=True):
        assert (pressed == was, left == was) == (was != busy_one,) * 2


async def test_hop_by_hop_headers_end_and_the_others_pass() -> None:
    sent = {"Connection": "keep-alive, X-Private", "X-Private": "1", "TE": "trailers", "Authorization": "Bearer k"}
    reply = answering("x", headers={"X-Octavo-Ignored": "a, b", "Keep-Alive": "timeout=5"})
    async with an_upstream(reply) as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        answer = await bench.send("POST", CHAT, json={"model": "m"}, headers=sent)

    (arrived,) = upstream.headers
    assert arrived["Authorization"] == "Bearer k"
    assert arrived["X-Forwarded-For"] == "127.0.0.1"
    assert arrived["Host"] == upstream.url.removeprefix("http://")
    assert not [name for name in ("X-Private", "TE", "Keep-Alive") if name in arrived]
    assert answer.headers["X-Octavo-Ignored"] == "a, b"
    assert "Keep-Alive" not in answer.headers


async def test_a_request_id_is_passed_on_and_echoed_once() -> None:
    reply = answering("x", headers={"X-Request-Id": "upstream's"})
    async with an_upstream(reply) as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        answer = await bench.send("POST", CHAT, json={"model": "m"}, headers={"X-Request-Id": "mine-1"})

    assert answer.headers.getall("X-Request-Id") == ["mine-1"]
    assert upstream.headers[0]["X-Request-Id"] == "mine-1"


@pytest.mark.parametrize("given", ["", "a b", "x" * 200, "<script>"])
async def test_a_request_id_that_is_no_sane_line_is_replaced(given: str) -> None:
    async with a_gateway() as bench:
        answer = await bench.send("POST", CHAT, data=b"{", headers={"X-Request-Id": given})

    assert len(answer.headers["X-Request-Id"]) == 32


async def test_a_compressed_request_body_is_inflated_once() -> None:
    body = json.dumps({"model": "m"}).encode()
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        answer = await bench.send("POST", CHAT, data=gzip.compress(body), headers=headers)

    assert answer.status == 200
    assert upstream.bodies == [body]
    assert "Content-Encoding" not in upstream.headers[0]


async def test_an_upstreams_error_passes_as_it_is() -> None:
    reply = answering("no", status=422)
    async with an_upstream(reply) as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        answer = await bench.ask()

    assert (answer.status, answer.json) == (422, {"text": "no"})


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, "invalid_json", None),
        (b"\xff\xfe", 400, "invalid_json", None),
        (b"[1]", 400, "invalid_json", None),
        (b"[" * 100_000, 400, "invalid_json", None),
        (b"{}", 400, "invalid_request", "model"),
        (b'{"model": 3}', 400, "invalid_request", "model"),
        (b'{"model": ""}', 400, "invalid_request", "model"),
        (b'{"model": "nobody"}', 404, "model_not_found", "model"),
    ],
)
async def test_mistakes_get_openais_error_shape(body: bytes, status: int, code: str, param: str | None) -> None:
    async with a_gateway(a_model("m")) as bench:
        answer = await bench.send("POST", CHAT, data=body)

    assert (answer.status, answer.error["code"], answer.error["param"]) == (status, code, param)


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("DELETE", "/v1/models", 405, "GET"),
        ("GET", "/v1/nothing", 404, None),
        ("GET", "/", 404, None),
        ("POST", "/metrics", 404, None),
        ("GET", "/metrics", 404, None),
        ("GET", "/v1/models/nobody", 404, None),
    ],
)
async def test_wrong_paths_and_methods(method: str, path: str, status: int, allow: str | None) -> None:
    async with a_gateway(a_model("m")) as bench:
        answer = await bench.send(method, path)

    assert (answer.status, answer.headers.get("Allow")) == (status, allow)
    assert answer.error["type"] == "invalid_request_error"
    assert "X-Request-Id" in answer.headers


@pytest.mark.parametrize("is_announced", [True, False])
async def test_a_body_over_the_limit_is_refused_without_being_read(is_announced: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 1024

    async with (
        an_upstream() as upstream,
        a_gateway(a_model("m", upstream.replica()), max_request_bytes=4096) as bench,
    ):
        answer = await bench.send("POST", CHAT, data=b"x" * 65_536 if is_announced else pieces())

    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert "4096" in answer.error["message"]
    assert upstream.requests == 0


async def test_a_body_that_stops_coming_is_given_up_and_frees_its_budget() -> None:
    stuck = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"model": "m", "pad": "'
        await stuck.wait()

    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica()), body_silence_s=0.1) as bench:
        async with asyncio.timeout(5):
            answer = await bench.send("POST", CHAT, data=pieces())
        assert bench.gateway.proxy.buffered_bytes == 0
        counted = await bench.metric('octavo_gateway_requests_total{code="408",model=""}')

    assert (answer.status, answer.error["code"], counted) == (408, "request_timeout", 1)


async def test_all_bodies_together_are_bounded() -> None:
    """One request of 2,000 bytes runs, a second one does not fit beside it, a third one does after it."""
    gate: asyncio.Queue[bytes | None] = asyncio.Queue()
    async with (
        an_upstream(streaming(gate)) as upstream,
        a_gateway(a_model("m", upstream.replica()), max_buffered_bytes=3000) as bench,
    ):
        first = asyncio.create_task(bench.ask(pad="x" * 2000))
        await until(lambda: upstream.requests == 1)
        second = await bench.ask(pad="x" * 2000)
        await gate.put(None)
        await first
        await gate.put(None)
        third = await bench.ask(pad="x" * 2000)

    assert (second.status, second.error["code"], second.headers["Retry-After"]) == (503, "gateway_busy", "1")
    assert third.status == 200


async def test_models_lists_every_name_once_in_openais_shape() -> None:
    async with a_gateway(a_model("b", served_names=("b", "b2"), created_s=7.9), a_model("a")) as bench:
        listing = (await bench.send("GET", "/v1/models")).json
        one = (await bench.send("GET", "/v1/models/default/b")).json

    assert listing["object"] == "list"
    assert [(model["id"], model["object"]) for model in listing["data"]] == [
        ("a", "model"),
        ("b", "model"),
        ("b2", "model"),
    ]
    assert (one["id"], one["created"], one["deployment"]) == ("default/b", 7, "default/b")


async def test_before_the_first_list_nothing_is_unknown() -> None:
    """A gateway that has just started must not say 404 of a model that it has not read yet."""
    async with a_gateway() as bench:
        bench.gateway.router.publish(RoutingTable(is_complete=False))
        answer = await bench.ask()
        ready, _ = await bench.internal("/readyz")
        models = await bench.send("GET", "/v1/models")

    assert (answer.status, answer.error["code"], answer.headers["Retry-After"]) == (503, "starting", "1")
    assert (ready, models.status) == (503, 503)


async def test_metrics_count_by_model_and_code_and_never_by_a_clients_string() -> None:
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        for name in ("m", "default/m", "somebody's string"):
            await bench.ask(name)
        _, text = await bench.internal("/metrics")
        counts = [
            await bench.metric(series)
            for series in (
                'octavo_gateway_requests_total{code="200",model="default/m"}',
                'octavo_gateway_requests_total{code="404",model=""}',
                'octavo_gateway_request_seconds_count{model="default/m"}',
                'octavo_gateway_routable_replicas{model="default/m"}',
                "octavo_gateway_in_flight_requests",
            )
        ]

    assert counts == [2, 1, 2, 1, 0]
    assert "somebody" not in text


async def test_series_of_a_deleted_model_go_with_it() -> None:
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        await bench.ask()
        bench.set_models()
        _, text = await bench.internal("/metrics")

    assert "default/m" not in text


async def test_internal_health_answers() -> None:
    async with a_gateway() as bench:
        health, ready, held = [await bench.internal(path) for path in ("/healthz", "/readyz", "/held")]

    assert (health[0], ready[0]) == (200, 200)
    assert json.loads(held[1]) == {"held": {}, "last_wake": {}}


async def test_an_unforeseen_fault_is_a_500_that_tells_nothing_of_the_inside(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_gateway(a_model("m")) as bench:
        with monkeypatch.context() as patched:
            patched.setattr(bench.gateway.router, "table", None)
            answer = await bench.ask()

    assert (answer.status, answer.error["type"]) == (500, "server_error")
    assert "NoneType" not in answer.error["message"]
    assert "NoneType" in caplog.text


async def test_many_connections_at_once_all_get_their_answer() -> None:
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        answers = await asyncio.gather(*(bench.ask() for _ in range(100)))

    assert {answer.status for answer in answers} == {200}
    assert upstream.requests == 100


@pytest.mark.parametrize(
    ("body", "status"), [(b'{"model": "\\ud800"}', 404), (b'{"model": "default/m", "prompt": "\\ud800"}', 200)]
)
async def test_half_a_surrogate_pair_breaks_neither_an_error_nor_a_renamed_body(body: bytes, status: int) -> None:
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        answer = await bench.send("POST", CHAT, data=body)

    assert answer.status == status
    assert [json.loads(each) for each in upstream.bodies] == (
        [{"model": "m", "prompt": "\ud800"}] if upstream.bodies else []
    )
    assert upstream.requests == (status == 200)


async def test_a_fault_of_the_gateway_is_a_500_that_is_counted_as_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(call, "_headers_to", broken)
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        answer = await bench.ask()
        counted = await bench.metric('octavo_gateway_requests_total{code="500",model="default/m"}')

    assert (answer.status, answer.error["code"], counted) == (500, "internal_error", 1)
    assert "a fault of ours" in caplog.text
