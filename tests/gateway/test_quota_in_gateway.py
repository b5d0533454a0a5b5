"""Quotas through real gateways: what counts, what a client sees of it, and two gateways that share one budget."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from octavo_gateway.endpoints import Access, Model, Replica
from octavo_gateway.quota import Limits
from octavo_gateway.quota_wire import PATH, SIGNATURE, encode_question, sign
from octavo_gateway.quotas import SavedDay
from octavo_testing.apiserver import free_ports
from octavo_testing.gateway import CHAT, Bench, Handler, a_gateway, a_model, an_upstream, answering, until

SECRETS = {"default/keys": {"alice": b"sk-alice", "bob": b"sk-bob"}}
ALICE = {"Authorization": "Bearer sk-alice"}
BOB = {"Authorization": "Bearer sk-bob"}
USAGE = {"prompt_tokens": 40, "completion_tokens": 60, "total_tokens": 100}


def limited(*replicas: Replica, per_minute: int = 0, per_day: int = 0) -> Model:
    access = Access(keys_from=("keys",), limits=Limits(per_minute=per_minute, per_day=per_day))
    return a_model("m", *replicas, access=access)


def telling_usage(usage: dict[str, int] = USAGE) -> Handler:
    """As a server does it: a stream tells usage only where it is asked to."""

    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if not body.get("stream"):
            return web.json_response({"choices": [{"text": "hi"}], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        asked = (body.get("stream_options") or {}).get("include_usage")
        extra = {"usage": None} if asked else {}
        chunks = [{"choices": [{"text": "hi"}], **extra}, *([{"choices": [], "usage": usage}] if asked else [])]
        for chunk in chunks:
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    return handler


async def ask(bench: Bench, headers: Mapping[str, str] = ALICE, **fields: Any) -> Any:
    return await bench.send("POST", CHAT, json={"model": "m", "max_tokens": 60, **fields}, headers=headers)


async def test_a_key_that_has_used_up_its_minute_gets_429_and_another_key_does_not() -> None:
    async with (
        an_upstream(telling_usage()) as upstream,
        a_gateway(limited(upstream.replica(), per_minute=1000), secrets=SECRETS) as bench,
    ):
        await until(lambda: bench.gateway.is_ready)
        answers = [await ask(bench) for _ in range(15)]
        other = await ask(bench, BOB)
        refused = answers[-1]
        rejections = await bench.metric(
            'octavo_gateway_quota_rejections_total{model="default/m",quota="tokens_per_minute_exceeded"}'
        )
        tokens = await bench.metric('octavo_gateway_tokens_total{kind="output",model="default/m"}')

    served = [answer.status for answer in answers].count(200)
    assert 9 <= served <= 11
    assert (refused.status, refused.error["code"], refused.error["type"]) == (
        429,
        "tokens_per_minute_exceeded",
        "rate_limit_error",
    )
    assert 1 <= int(refused.headers["Retry-After"]) <= 61
    assert "may use 1000 tokens a minute" in refused.error["message"]
    assert other.status == 200
    assert (rejections, tokens) == (15 - served, 60 * (served + 1))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failed_request_costs_nothing(stream: bool) -> None:
    async with (
        an_upstream(answering("no", status=400)) as upstream,
        a_gateway(limited(upstream.replica(), per_minute=300), secrets=SECRETS) as bench,
    ):
        await until(lambda: bench.gateway.is_ready)
        statuses = {(await ask(bench, stream=stream)).status for _ in range(30)}

    assert statuses == {400}


async def test_usage_is_asked_for_and_hidden_from_a_client_that_did_not_ask() -> None:
    async with (
        an_upstream(telling_usage()) as upstream,
        a_gateway(limited(upstream.replica(), per_minute=10_000), secrets=SECRETS) as bench,
    ):
        await until(lambda: bench.gateway.is_ready)
        unasked = await ask(bench, stream=True)
        asked = await ask(bench, stream=True, stream_options={"include_usage": True})
        tokens = await bench.metric('octavo_gateway_tokens_total{kind="prompt",model="default/m"}')

    assert [json.loads(body)["stream_options"] for body in upstream.bodies] == [{"include_usage": True}] * 2
    assert [json.loads(event) for event in unasked.events[:-1]] == [{"choices": [{"text": "hi"}]}]
    assert [json.loads(event).get("usage") for event in asked.events[:-1]] == [None, USAGE]
    assert (unasked.events[-1], asked.events[-1], tokens) == ("[DONE]", "[DONE]", 80)


@dataclass
class SharedBackend:
    """What a cluster is to quotas, for gateways of one process."""

    addresses: list[str]
    saved: dict[str, SavedDay] = field(default_factory=dict)

    async def watch_ready(self, told: Callable[[Iterable[str]], None]) -> None:
        told(self.addresses)
        await asyncio.Event().wait()

    async def peer_secret(self) -> bytes:
        return b"s" * 32

    async def load_days(self) -> dict[str, SavedDay]:
        return dict(self.saved)

    async def save_days(self, changes: Mapping[str, SavedDay | None]) -> None:
        self.saved.update({account: saved for account, saved in changes.items() if saved is not None})


@contextlib.asynccontextmanager
async def two_gateways(model: Model) -> AsyncIterator[tuple[Bench, Bench, SharedBackend]]:
    ports = free_ports(2)
    backend = SharedBackend([f"127.0.0.1:{port}" for port in ports])
    async with contextlib.AsyncExitStack() as stack:
        benches = [
            await stack.enter_async_context(
                a_gateway(
                    model,
                    secrets=SECRETS,
                    quota_backend=backend,
                    internal_port=port,
                    own_address=f"127.0.0.1:{port}",
                )
            )
            for port in ports
        ]
        for bench in benches:
            await until(lambda bench=bench: bench.gateway.is_ready and len(bench.gateway._quotas._ready) == 2)
            await until(lambda bench=bench: bool(bench.gateway._quota_loops.secret))
        yield benches[0], benches[1], backend


async def test_two_gateways_share_one_budget_over_the_internal_port() -> None:
    async with (
        an_upstream(telling_usage()) as upstream,
        two_gateways(limited(upstream.replica(), per_minute=2000)) as (one, two, _),
    ):
        answers = [await ask(bench) for _ in range(20) for bench in (one, two)]
        silent = [await bench.metric("octavo_gateway_silent_quota_owners_total") for bench in (one, two)]

    served = [answer.status for answer in answers].count(200)
    assert silent == [0, 0]
    assert 17 <= served <= 21
    assert {answer.status for answer in answers} == {200, 429}


async def test_a_gateway_that_ends_has_told_and_saved_what_was_used() -> None:
    async with (
        an_upstream(telling_usage()) as upstream,
        two_gateways(limited(upstream.replica(), per_day=100_000)) as (one, two, backend),
    ):
        for bench in (one, two, one):
            assert (await ask(bench)).status == 200
        for bench in (one, two, one):
            await bench.gateway._quota_loops.close()

    (saved,) = backend.saved.values()
    assert sum(saved.tokens.values()) == 300


@pytest.mark.parametrize("signature", ["", "1.2", sign(b"t" * 32, b"{}", 1e9)])
async def test_the_internal_port_answers_nobody_who_lacks_the_secret(signature: str) -> None:
    backend = SharedBackend(["127.0.0.1:1"])
    async with a_gateway(quota_backend=backend) as bench:
        await until(lambda: bool(bench.gateway._quota_loops.secret))
        url = f"http://127.0.0.1:{bench.gateway.internal_port}{PATH}"
        async with bench.client.post(url, data=encode_question("x", []), headers={SIGNATURE: signature}) as answer:
            assert answer.status == 403
