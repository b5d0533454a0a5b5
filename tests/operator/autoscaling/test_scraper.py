"""The scrapers against real servers on loopback: what is read, what is left out, and that nobody waits for a dead one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math

import pytest
from aiohttp import web

from octavo_operator.autoscaling.gateway_held import GatewayHeld, GatewayPod, parse_held
from octavo_operator.autoscaling.pod_http import MAX_ANSWER_BYTES, PodAnswerError, pod_url
from octavo_operator.autoscaling.scraper import Scraper, parse_load
from octavo_operator.metrics_adapter.store import MetricsStore
from octavo_testing.adapter import NOW, VirtualClock, a_pod

LOAD = {"pressure": 1.7, "running": 3, "waiting": 2, "draining": False, "requests_total": 41, "kv_usage": 0.4}


class Pods:
    """Several pods on one port, each at its own loopback address with its own answer; counts what was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, object] = {}
        self.asked: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        ip = request.get_extra_info("sockname")[0]
        self.asked.append(ip)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            answer = self.answers[ip]
            if answer == "hang":
                await asyncio.sleep(60)
            if isinstance(answer, web.Response):
                return answer
            return web.json_response(answer)
        finally:
            self.at_once -= 1


@contextlib.asynccontextmanager
async def serving(pods: Pods):
    app = web.Application()
    app.router.add_get("/load", pods.handle)
    app.router.add_get("/held", pods.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "0.0.0.0", 0)
    await site.start()
    pods.port = runner.addresses[0][1]
    try:
        yield
    finally:
        await runner.cleanup()


@pytest.fixture
async def pods():
    pods = Pods()
    async with serving(pods):
        yield pods


def a_scraper(pods: Pods, listed, store: MetricsStore, **options) -> Scraper:
    return Scraper(store, lambda: listed, now=VirtualClock(), port=pods.port, timeout_s=0.5, **options)


async def scrape(scraper: Scraper) -> None:
    async with scraper.session() as session:
        await scraper.scrape_once(session)


async def test_a_serving_pods_load_is_stored(pods):
    store, pod = MetricsStore(), a_pod()
    pods.answers[pod.ip] = LOAD

    await scrape(a_scraper(pods, [pod], store))

    assert store.fresh(pod.uid, NOW) == parse_load(LOAD, at=NOW)
    assert store.fresh(pod.uid, NOW).pressure == 1.7


async def test_unready_and_terminating_pods_are_not_asked(pods):
    listed = [
        a_pod("a", ip="127.0.0.1", ready=False),
        a_pod("b", ip="127.0.0.2", terminating=True),
        a_pod("c", ip=""),
    ]

    await scrape(a_scraper(pods, listed, MetricsStore()))

    assert pods.asked == []


async def test_a_hanging_pod_costs_only_its_own_time_out_and_says_so_once(pods, caplog):
    store = MetricsStore()
    hanging, well = a_pod("hanging", ip="127.0.0.1"), a_pod("well", ip="127.0.0.2")
    pods.answers = {"127.0.0.1": "hang", "127.0.0.2": LOAD}
    scraper = a_scraper(pods, [hanging, well], store)

    with caplog.at_level(logging.WARNING):
        await asyncio.wait_for(scrape(scraper), 5)
        await asyncio.wait_for(scrape(scraper), 5)

    assert store.fresh(well.uid, NOW) is not None
    assert store.fresh(hanging.uid, NOW) is None
    assert [record.pod for record in caplog.records] == ["default/hanging"]


async def test_a_pod_that_speaks_again_may_fall_silent_and_be_named_again(pods, caplog):
    pod = a_pod()
    scraper = a_scraper(pods, [pod], MetricsStore())

    with caplog.at_level(logging.WARNING):
        for answer in (web.Response(status=500), LOAD, web.Response(status=503)):
            pods.answers[pod.ip] = answer
            await scrape(scraper)

    assert len(caplog.records) == 2


async def test_a_pod_that_is_gone_is_forgotten(pods):
    store, pod = MetricsStore(), a_pod()
    pods.answers[pod.ip] = LOAD
    listed = [pod]
    scraper = a_scraper(pods, listed, store)
    await scrape(scraper)

    listed.clear()
    await scrape(scraper)

    assert len(store) == 0


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(status=404),
        web.Response(text="not json"),
        web.Response(text="[1]"),
        web.Response(body=b" " * (MAX_ANSWER_BYTES + 1)),
        web.Response(text="[" * 100_000),
        web.Response(text=json.dumps({**LOAD, "pressure": 10**400})),
        {**LOAD, "pressure": 1e300},
        {**LOAD, "kv_tokens": 2**53 + 1},
        {**LOAD, "pressure": "1"},
        {**LOAD, "pressure": True},
        {**LOAD, "running": -1},
        {**LOAD, "running": 1.5},
        {**LOAD, "draining": 0},
        {key: LOAD[key] for key in LOAD if key != "requests_total"},
    ],
    ids=lambda answer: str(answer)[:40],
)
async def test_an_answer_that_is_not_a_load_is_left_out(pods, answer):
    store, pod = MetricsStore(), a_pod()
    pods.answers[pod.ip] = answer

    await scrape(a_scraper(pods, [pod], store))

    assert len(store) == 0


async def test_a_redirect_is_not_followed(pods):
    """A pod must not make the operator ask elsewhere in its name."""
    store, pod = MetricsStore(), a_pod(ip="127.0.0.1")
    location = {"Location": f"http://127.0.0.2:{pods.port}/load"}
    pods.answers = {"127.0.0.1": web.Response(status=302, headers=location), "127.0.0.2": LOAD}

    await scrape(a_scraper(pods, [pod], store))

    assert pods.asked == ["127.0.0.1"]
    assert len(store) == 0


async def test_many_pods_are_asked_a_bounded_number_at_once(pods):
    listed = [a_pod(f"p{i}", ip=f"127.0.1.{i}") for i in range(1, 151)]
    pods.answers = {pod.ip: LOAD for pod in listed}
    store = MetricsStore()

    await asyncio.wait_for(
        scrape(Scraper(store, lambda: listed, now=VirtualClock(), port=pods.port, timeout_s=15.0)), 20
    )

    assert len(store) == 150
    assert pods.most_at_once <= 64


async def test_rounds_follow_each_other_until_cancelled(pods):
    pod = a_pod()
    pods.answers[pod.ip] = LOAD
    rounds = asyncio.Queue()
    scraper = a_scraper(pods, [pod], MetricsStore(), interval_s=0.01)

    task = asyncio.create_task(scraper.run(on_round=lambda: rounds.put_nowait(None)))
    for _ in range(3):
        await asyncio.wait_for(rounds.get(), 5)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(pods.asked) >= 3


async def test_gateways_are_added_up_and_the_newest_wake_counts(pods):
    pods.answers = {
        "127.0.0.1": {"held": {"default/qwen": 2, "a/b": 1}, "last_wake": {"default/qwen": 100.5}},
        "127.0.0.2": {"held": {"default/qwen": 3}, "last_wake": {"default/qwen": 90.0}},
    }
    gateways = [GatewayPod(name="gw-1", ip="127.0.0.1"), GatewayPod(name="gw-2", ip="127.0.0.2")]
    reader = GatewayHeld(lambda: gateways, now=VirtualClock(), port=pods.port)

    async with reader.session() as session:
        snapshot = await reader.read_once(session)

    assert snapshot.held == {"default/qwen": 5, "a/b": 1}
    assert snapshot.last_wake == {"default/qwen": 100.5}
    assert snapshot.unheard == ()
    assert reader.snapshot == snapshot


async def test_a_gateway_that_does_not_answer_is_named(pods):
    pods.answers = {"127.0.0.1": {"held": {}, "last_wake": {}}, "127.0.0.2": "hang", "127.0.0.3": {"held": []}}
    gateways = [GatewayPod(name=f"gw-{i}", ip=f"127.0.0.{i}") for i in (3, 2, 1)]
    reader = GatewayHeld(lambda: gateways, now=VirtualClock(), port=pods.port, timeout_s=0.3)

    async with reader.session() as session:
        snapshot = await reader.read_once(session)

    assert snapshot.unheard == ("gw-2", "gw-3")


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"held": {}, "last_wake": []},
        {"held": {"a/b": "1"}, "last_wake": {}},
        {"held": {"a/b": -1}, "last_wake": {}},
    ],
)
def test_an_answer_that_is_not_held_is_refused(answer):
    with pytest.raises(PodAnswerError):
        parse_held(answer, at=NOW)


def test_a_load_that_is_not_a_number_yet_parses_and_the_store_leaves_it_out():
    """Python's JSON reads NaN; a scale decision on it would be nonsense."""
    store = MetricsStore()

    for uid, pressure in (("nan", math.nan), ("inf", math.inf), ("negative", -0.1), ("good", 0.0)):
        store.put(uid, parse_load({**LOAD, "pressure": pressure}, at=NOW))

    assert [uid for uid in ("nan", "inf", "negative", "good") if store.fresh(uid, NOW)] == ["good"]


def test_an_ipv6_pod_has_a_url():
    assert pod_url("fd00::7", 8000, "/load") == "http://[fd00::7]:8000/load"
    assert pod_url("10.0.0.7", 8000, "/load") == "http://10.0.0.7:8000/load"
