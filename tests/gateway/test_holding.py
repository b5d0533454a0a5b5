"""Holding: requests wait while no replica can take them, within their bounds, and are released as soon as one can."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from octavo_gateway import admission
from octavo_gateway.errors import KubeApiError
from octavo_testing.gateway import CHAT, Bench, Handler, a_gateway, a_model, an_upstream, answering, hanging_up, until


def held(bench: Bench) -> dict[str, int]:
    return bench.gateway.router.admission.held()


def asleep(**fields: Any) -> Any:
    return a_model("m", is_scaled_to_zero=True, can_wake=True, **fields)


async def test_a_request_waits_for_the_first_ready_replica_and_is_released_at_once() -> None:
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica(ready=False))) as bench:
        asking = asyncio.create_task(bench.ask())
        await until(lambda: held(bench) == {"default/m": 1})
        told = json.loads((await bench.internal("/held"))[1])["held"]
        gauge = await bench.metric('octavo_gateway_held_requests{model="default/m"}')

        bench.set_models(a_model("m", upstream.replica()))
        async with asyncio.timeout(0.3):
            answer = await asking
        waits = await bench.metric('octavo_gateway_hold_seconds_count{model="default/m"}')

    assert answer.status == 200
    assert (told, gauge, waits) == ({"default/m": 1}, 1, 1)
    assert held(bench) == {}


async def test_a_replica_that_is_only_draining_makes_requests_wait_for_its_successor() -> None:
    """The swap on a single GPU: the old one says 503, the new one comes, no request fails."""
    async with (
        an_upstream(answering("old", status=503)) as old,
        an_upstream(answering("new")) as new,
        a_gateway(a_model("m", old.replica())) as bench,
    ):
        asking = [asyncio.create_task(bench.ask()) for _ in range(5)]
        await until(lambda: held(bench) == {"default/m": 5})
        bench.set_models(a_model("m", new.replica()))
        answers = await asyncio.gather(*asking)

    assert [answer.json for answer in answers] == [{"text": "new"}] * 5


async def test_a_crashed_replica_is_tried_again_when_it_is_back() -> None:
    async with an_upstream(hanging_up()) as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        asking = asyncio.create_task(bench.ask())
        await until(lambda: upstream.requests == 1)
        upstream.handler = answering("back")
        async with asyncio.timeout(5):
            answer = await asking

    assert (answer.status, answer.json) == (200, {"text": "back"})


async def test_one_over_max_held_gets_503_with_retry_after_at_once() -> None:
    async with a_gateway(a_model("m", max_held=2)) as bench:
        waiting = [asyncio.create_task(bench.ask()) for _ in range(2)]
        await until(lambda: held(bench) == {"default/m": 2})

        async with asyncio.timeout(1):
            refused = await bench.ask()
        for task in waiting:
            task.cancel()
        await until(lambda: held(bench) == {})

    assert (refused.status, refused.error["code"]) == (503, "too_many_held")
    assert int(refused.headers["Retry-After"]) >= 1
    assert "2 requests already wait" in refused.error["message"]


async def test_hold_timeout_ends_the_wait_with_503() -> None:
    async with a_gateway(a_model("m", hold_timeout_s=0.2)) as bench, asyncio.timeout(2):
        answer = await bench.ask()

    assert (answer.status, answer.error["code"]) == (503, "hold_timeout")
    assert "0.2 s" in answer.error["message"]
    assert int(answer.headers["Retry-After"]) >= 1
    assert held(bench) == {}


async def test_a_client_that_leaves_frees_its_place() -> None:
    async with a_gateway(a_model("m")) as bench:
        asking = asyncio.create_task(bench.ask())
        await until(lambda: held(bench) == {"default/m": 1})

        asking.cancel()

        await until(lambda: held(bench) == {}, within_s=1)


async def test_a_model_deleted_while_requests_wait_is_a_404() -> None:
    async with a_gateway(a_model("m")) as bench:
        asking = asyncio.create_task(bench.ask())
        await until(lambda: held(bench) == {"default/m": 1})
        bench.set_models()
        answer = await asking

    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


async def test_nobody_waits_for_a_model_that_nothing_will_start() -> None:
    async with a_gateway(a_model("m", is_scaled_to_zero=True)) as bench, asyncio.timeout(1):
        answer = await bench.ask()

    assert (answer.status, answer.error["code"]) == (503, "scaled_to_zero")


@pytest.fixture
def quick_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "HEARTBEAT_EVERY_S", 0.1)


@pytest.mark.usefixtures("quick_heartbeats")
async def test_a_held_stream_gets_heartbeats_and_then_its_events() -> None:
    events = b"data: 1\n\ndata: [DONE]\n\n"

    async with an_upstream(streaming_once(events)) as upstream, a_gateway(a_model("m")) as bench:
        response = await bench.client.post(bench.url + CHAT, json={"model": "m", "stream": True})
        first = await response.content.readline()
        bench.set_models(a_model("m", upstream.replica()))
        rest = await response.content.read()

    assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
    assert first.startswith(b":")
    assert rest.endswith(events)
    assert [line for line in rest.splitlines() if line and not line.startswith((b":", b"data:"))] == []


@pytest.mark.usefixtures("quick_heartbeats")
async def test_an_upstreams_4xx_after_heartbeats_comes_inside_the_stream() -> None:
    error = {"error": {"message": "too long", "type": "invalid_request_error", "param": "messages", "code": None}}
    async with an_upstream(json_answer(error, status=400)) as upstream, a_gateway(a_model("m")) as bench:
        response = await bench.client.post(bench.url + CHAT, json={"model": "m", "stream": True})
        await response.content.readline()
        bench.set_models(a_model("m", upstream.replica()))
        rest = await response.content.read()
        counted = await bench.metric('octavo_gateway_requests_total{code="400",model="default/m"}')

    events = [line[6:] for line in rest.decode().splitlines() if line.startswith("data: ")]
    assert json.loads(events[0]) == error
    assert events[1:] == ["[DONE]"]
    assert counted == 1


@pytest.mark.usefixtures("quick_heartbeats")
async def test_a_hold_timeout_after_heartbeats_comes_inside_the_stream() -> None:
    async with a_gateway(a_model("m", hold_timeout_s=0.35)) as bench:
        answer = await bench.ask(stream=True)

    assert answer.status == 200
    assert answer.body.count(b": waiting") == 3
    assert json.loads(answer.events[0])["error"]["code"] == "hold_timeout"
    assert answer.events[1:] == ["[DONE]"]


@pytest.mark.usefixtures("quick_heartbeats")
async def test_a_held_request_that_does_not_stream_gets_no_byte_before_its_answer() -> None:
    async with a_gateway(a_model("m", hold_timeout_s=0.35)) as bench:
        answer = await bench.ask()

    assert (answer.status, answer.error["code"]) == (503, "hold_timeout")


async def test_a_held_request_wakes_its_model_and_the_time_is_told() -> None:
    async with a_gateway(asleep()) as bench:
        asking = asyncio.create_task(bench.ask())
        await until(lambda: bench.source.woken == ["default/m"], within_s=1)
        told = json.loads((await bench.internal("/held"))[1])["last_wake"]
        asking.cancel()

    assert set(told) == {"default/m"}
    assert told["default/m"] > 1.6e9


async def test_the_wake_is_repeated_while_requests_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo_gateway.waker.WAKE_EVERY_S", 0.1)
    async with a_gateway(asleep()) as bench:
        asking = asyncio.create_task(bench.ask())
        await until(lambda: len(bench.source.woken) >= 3)
        asking.cancel()
        await until(lambda: held(bench) == {})
        await asyncio.sleep(0.2)
        count = len(bench.source.woken)
        await asyncio.sleep(0.3)

    assert len(bench.source.woken) == count


async def test_many_held_requests_make_one_wake() -> None:
    async with a_gateway(asleep()) as bench:
        asking = [asyncio.create_task(bench.ask()) for _ in range(20)]
        await until(lambda: held(bench) == {"default/m": 20})
        for task in asking:
            task.cancel()

    assert bench.source.woken == ["default/m"]


async def test_a_refused_wake_is_tried_again_and_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo_gateway.waker.WAKE_EVERY_S", 0.1)
    async with a_gateway(asleep()) as bench:
        bench.source.refusal = KubeApiError(409, "the object has been modified")
        asking = asyncio.create_task(bench.ask())
        await until(lambda: held(bench) == {"default/m": 1})
        await asyncio.sleep(0.3)
        before = json.loads((await bench.internal("/held"))[1])["last_wake"]
        bench.source.refusal = None
        await until(lambda: bench.source.woken == ["default/m"])
        asking.cancel()

    assert before == {}


@pytest.mark.parametrize(
    ("status", "said"), [(403, "answered 403"), (500, "answered 500"), (0, "was not reached"), (409, None)]
)
async def test_whoever_waited_in_vain_is_told_that_the_model_could_not_be_woken_and_the_log_once_why(
    status: int, said: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A conflict is no refusal: the next try knows better."""
    monkeypatch.setattr("octavo_gateway.waker.WAKE_EVERY_S", 0.02)
    async with a_gateway(asleep(hold_timeout_s=1.0)) as bench:
        bench.source.refusal = KubeApiError(status, 'User "system:serviceaccount:sys:octavo-gateway" cannot patch')
        answer = await bench.ask()

    assert answer.error["code"] == "hold_timeout"
    assert ("could not be woken" in answer.error["message"]) is (said is not None)
    assert (said or "holdTimeout") in answer.error["message"]
    assert "serviceaccount" not in answer.error["message"]
    assert caplog.text.count("could not wake a model") == (said is not None)


async def test_a_model_that_is_awake_or_may_not_wake_is_never_woken() -> None:
    async with a_gateway(a_model("awake", can_wake=True), a_model("busy", is_scaled_to_zero=False)) as bench:
        asking = [asyncio.create_task(bench.ask(name)) for name in ("awake", "busy")]
        await until(lambda: len(held(bench)) == 2)
        await asyncio.sleep(0.1)
        for task in asking:
            task.cancel()

    assert bench.source.woken == []


def streaming_once(events: bytes) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(events)
        return response

    return handler


def json_answer(body: object, *, status: int) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=status)

    return handler
