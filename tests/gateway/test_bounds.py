"""Every map of a gateway is bounded: what clients and clusters may make up without end leaves none of it behind.

The maps are found, not listed: whatever dict, set, list or queue hangs on a running gateway is measured.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from octavo_gateway.endpoints import Access, Model
from octavo_gateway.errors import GatewayError
from octavo_gateway.quota import Limits
from octavo_gateway.request_body import parse_body
from octavo_gateway.stored_responses import digest, find_place
from octavo_testing.gateway import CHAT, Bench, a_gateway, a_model, a_replica, an_upstream, streaming, until

GROWTH_MIB = 16
"""Of the whole process, the test's own client and upstream included."""
KEYED = Access(keys_from=("team",), limits=Limits(per_minute=10**9, per_day=10**12))
SECRETS = {"default/team": {"alice": b"sk-alice"}}


def sizes_of(bench: Bench) -> dict[str, int]:
    """The length of each collection that hangs on the gateway's own objects, by the way to it; and the metrics' series."""
    sizes: dict[str, int] = {}
    seen: set[int] = set()

    def walk(value: Any, way: str) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, Mapping | set | frozenset | list | tuple) or type(value).__name__ == "deque":
            if not isinstance(value, tuple):
                sizes[way] = max(len(value), sizes.get(way, 0))
            for each in list(value.values() if isinstance(value, Mapping) else value):
                walk(each, f"{way}[]")
        elif type(value).__module__.startswith("octavo_gateway"):
            for name, each in _attributes(value):
                walk(each, f"{way}.{name}")

    walk(bench.gateway, "gateway")
    series = sum(len(family.samples) for family in bench.gateway.metrics.registry.collect())
    return {**sizes, "series": series}


def _attributes(thing: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(thing, "__dict__", {}).items()
    for kind in type(thing).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if hasattr(thing, name):
                yield name, getattr(thing, name)


def rss_mib() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def ask_strangely(bench: Bench, number: int) -> set[int]:
    """One of each kind of request, all its names new."""
    headers = {"X-Request-Id": f"id-{number}", "X-Forwarded-For": f"10.0.{number}", "X-Tenant": f"tenant-{number}"}
    key = {"Authorization": f"Bearer sk-{number}"}
    alice = {"Authorization": "Bearer sk-alice"}
    chat = {"messages": [{"role": "user", "content": f"chat {number}"}], "cache_salt": str(number), "user": str(number)}
    stored = f"resp_{number}_{digest('default/open')}{digest(f'pod-{number}')}"
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", CHAT, {"json": {"model": "open", **chat}, "headers": headers}),
        ("POST", CHAT, {"json": {"model": "keyed", **chat}, "headers": alice}),
        ("POST", CHAT, {"json": {"model": "keyed", **chat}, "headers": key}),
        ("POST", CHAT, {"json": {"model": f"model-{number}"}, "headers": headers}),
        ("GET", f"/v1/responses/{stored}", {}),
        ("POST", "/v1/responses", {"json": {"model": "open", "input": [{"id": stored}]}}),
        ("GET", f"/v1/models/{number}", {"headers": key}),
        ("POST", f"/v1/path{number}", {"json": {"model": "open"}}),
        ("GET", f"/nowhere/{number}?x={number}", {"headers": {f"X-{number}": str(number)}}),
    ]
    answers = [await bench.send(method, path, **options) for method, path, options in asked]
    return {answer.status for answer in answers}


@pytest.mark.parametrize("num", [200, pytest.param(5_000, marks=[pytest.mark.full, pytest.mark.timeout(3600)])])
async def test_nothing_grows_with_the_keys_models_chats_ids_and_tenants_that_clients_make_up(num: int) -> None:
    async with (
        an_upstream() as upstream,
        a_gateway(
            a_model("open", upstream.replica("m-1"), a_replica("m-2", url=upstream.url)),
            a_model("keyed", upstream.replica("m-1"), access=KEYED),
            secrets=SECRETS,
            audit_log="/dev/null",
        ) as bench,
    ):
        await until(lambda: bench.gateway.is_ready)
        for number in range(30):
            await ask_strangely(bench, number)
        # A key's day begins with the first report of its tokens, some time after them.
        await until(lambda: any(way.endswith(".days") and size for way, size in sizes_of(bench).items()))
        sizes, memory = sizes_of(bench), rss_mib()
        numbers = iter(range(30, num + 30))

        async def client() -> set[int]:
            statuses: set[int] = set()
            for number in numbers:
                statuses |= await ask_strangely(bench, number)
                # What the replica was sent is not the gateway's to keep.
                upstream.bodies.clear()
                upstream.headers.clear()
            return statuses

        statuses = set().union(*await asyncio.gather(*(client() for _ in range(8))))
        await until(lambda: bench.gateway.proxy.in_flight == 0)
        grown = {way: (sizes.get(way), size) for way, size in sizes_of(bench).items() if size > sizes.get(way, 0)}
        more_mib = rss_mib() - memory

    assert statuses == {200, 401, 404}
    assert {way: sizes for way, sizes in grown.items() if "_slots" not in way and "_waiting" not in way} == {}
    assert more_mib < GROWTH_MIB


@pytest.mark.parametrize("num", [10_000, pytest.param(100_000, marks=pytest.mark.full)])
async def test_nothing_grows_with_ever_more_of_each_at_what_decides(num: int) -> None:
    """The same without the wire, which would take an hour."""
    async with a_gateway(
        a_model("open", a_replica("m-1", ready=False)), a_model("keyed", access=KEYED), secrets=SECRETS
    ) as bench:
        await until(lambda: bench.gateway.is_ready)
        router, gate = bench.gateway.router, bench.gateway.proxy._calls._gate
        model = a_model("open", a_replica("m-1"), a_replica("m-2"))
        keyed = router.table.models["default/keyed"]
        # What a table derives from itself is there after the first question.
        router.table.explain_unknown("x")
        sizes, memory = sizes_of(bench), rss_mib()
        for number in range(num):
            body = parse_body(f'{{"model": "model-{number}", "prompt": "{number}", "cache_salt": "{number}"}}'.encode())
            assert router.table.resolve(body.model) is None
            router.table.explain_unknown(body.model, gate.viewer(f"Bearer sk-{number}"))
            assert router.balancer.choose(model, now=0.0, affinity=body.affinity) is not None
            for refused in (
                partial(gate.check, keyed, f"Bearer sk-{number}"),
                partial(find_place, f"resp_{number}_{digest('default/open')}{digest(f'pod-{number}')}", router.table),
            ):
                with pytest.raises(GatewayError):
                    refused()
        grown = {way: size for way, size in sizes_of(bench).items() if size > sizes.get(way, 0)}
        more_mib = rss_mib() - memory

    assert grown == {}
    assert more_mib < GROWTH_MIB


@pytest.mark.parametrize("turns", [50, pytest.param(1000, marks=pytest.mark.full)])
async def test_nothing_stays_of_models_replicas_and_tenants_that_came_and_went(turns: int) -> None:
    """A hundred models of ten tenants a turn, each with a replica, a Secret, a choice, a failure, a hold and a wake."""
    stays = a_model("stays", a_replica("s-1"))
    async with a_gateway(stays, secrets=SECRETS) as bench:
        gateway = bench.gateway
        router = gateway.router
        await until(lambda: gateway.is_ready)
        memory = 0.0
        for turn in range(turns):
            models = [
                a_model(
                    f"m-{turn}-{number}",
                    a_replica(f"p-{turn}-{number}", ready=False),
                    access=Access(keys_from=(f"keys-{turn}-{number % 10}",)),
                    is_scaled_to_zero=True,
                    can_wake=True,
                )
                for number in range(100)
            ]
            bench.set_models(stays, *models)
            for model in models[:20]:
                url = model.replicas[0].url
                router.balancer.report_sick(url, now=0.0)
                with router.balancer.in_use(url):
                    router.balancer.choose(model, now=0.0, affinity=f"chat {turn}")
                gateway._key_poller._troubles[model.key_secrets[0]] = "gone"
                gateway.waker.last_wake[model.key] = gateway.waker._tried[model.key] = 1.0
                gateway.metrics.requests.labels(model.key, "200").inc()
                hold = router.hold(model)
                router.enter(hold)
                router.leave(hold)
            if turn == 20:
                memory = rss_mib()
        most = sizes_of(bench)
        bench.set_models(stays)
        await asyncio.sleep(0.05)
        least = sizes_of(bench)
        more_mib = rss_mib() - memory

    assert max(most.values()) < 20_000
    assert {way: size for way, size in least.items() if size > 60 and way != "series"} == {}
    assert least["series"] < 150
    assert more_mib < GROWTH_MIB


@pytest.mark.parametrize("breaks", [False, True])
async def test_an_answer_that_outlives_its_model_leaves_no_series_of_it(breaks: bool) -> None:
    """A deleted model's replicas go with it, and mostly in the middle of an answer."""
    gate: asyncio.Queue[bytes | None] = asyncio.Queue()
    async with an_upstream(streaming(gate)) as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        asking = asyncio.create_task(bench.ask(stream=True))
        await until(lambda: upstream.requests == 1)
        await gate.put(b"data: 1\n\n")
        await until(lambda: bench.gateway.router.balancer.in_flight(upstream.url) == 1)
        bench.set_models()
        if breaks:
            await upstream.stop()
        await gate.put(None)
        await asking
        _, metrics = await bench.internal("/metrics")

    assert 'model="default/m"' not in metrics


async def test_a_wake_that_outlives_its_model_leaves_nothing_of_it() -> None:
    async with a_gateway(a_model("m", is_scaled_to_zero=True, can_wake=True)) as bench:
        waking = asyncio.Event()

        async def wake(_: Model) -> None:
            waking.set()
            await asyncio.sleep(0.05)

        bench.source.wake = wake  # type: ignore[method-assign]
        asking = asyncio.create_task(bench.ask())
        await waking.wait()
        bench.set_models()
        await asking
        await asyncio.sleep(0.1)
        _, metrics = await bench.internal("/metrics")

    assert 'model="default/m"' not in metrics
    assert bench.gateway.waker.last_wake == {}


async def test_the_walk_finds_the_maps_that_there_are() -> None:
    """A test that finds nothing would pass for ever."""
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica()), secrets=SECRETS) as bench:
        await bench.ask()
        found = sizes_of(bench)

    for name in (
        "router.balancer._states",
        "router.balancer._last_turn",
        "router.admission._held",
        "waker._tried",
        "waker.last_wake",
        "proxy._running",
        "_key_poller._troubles",
        "_key_poller._keyring._digests",
        "_quotas._open",
        "_quotas._ledgers",
        "_quotas._saved",
        "_quotas._silent_until",
        "proxy._log._audit._waiting",
    ):
        assert any(way.endswith(name.rpartition(".")[2]) for way in found), name
    assert found["series"] > 20
