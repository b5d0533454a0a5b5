"""From scraped loads to the status's pressure and to the wish for zero replicas."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

import aiohttp
import pytest

from octavo_operator.errors import ClusterError
from octavo_operator.kube.client import KubeClient, Listing
from octavo_operator.loads import Loads
from octavo_operator.metrics_adapter.store import MetricsStore, PodLoad
from octavo_operator.object_cache import ObjectCache, ResourceKey
from octavo_operator.observed import Capacity
from octavo_operator.status import capacity_json
from octavo_testing.control_plane import a_manifest, a_pod

QWEN: ResourceKey = ("default", "qwen")
SLEEPY = {"scaling": {"minReplicas": 0, "maxReplicas": 2, "idleAfter": "60s"}, "replicas": 1}


class World:
    """A cache with one ready pod of qwen, a clock, and what was enqueued."""

    def __init__(self, **spec: Any) -> None:
        self.now = 1000.0
        self.enqueued: list[ResourceKey] = []
        self.cache = ObjectCache()
        self.store = MetricsStore()
        self.loads = Loads(cache=self.cache, store=self.store, enqueue=self.enqueued.append, now=lambda: self.now)
        self.put(a_manifest(**spec))
        self.pod = a_pod(revision="r", ready=True)
        self.put(dict(self.pod.raw))

    def put(self, obj: Mapping[str, Any]) -> None:
        self.now += 0.001
        newer = copy.deepcopy(dict(obj))
        newer["metadata"]["resourceVersion"] = str(int(self.now * 1000))
        self.cache.put(newer)

    def round(
        self,
        *,
        pressure: float = 0.0,
        requests: int = 0,
        running: int = 0,
        kv_tokens: int = 0,
        kv_usage: float = 0.0,
        speed: float = 0.0,
    ) -> None:
        self.store.put(
            self.pod.uid,
            PodLoad(
                pressure=pressure,
                running=running,
                waiting=0,
                draining=False,
                requests_total=requests,
                kv_usage=kv_usage,
                at=self.now,
                kv_tokens=kv_tokens,
                max_num_seqs=256 if kv_tokens else 0,
                tokens_per_second=speed,
            ),
        )
        self.loads.on_round()

    def wait(self, seconds: int, **load: Any) -> None:
        """Rounds every two seconds."""
        for _ in range(seconds // 2):
            self.now += 2
            self.round(**load)


class FakeGateways:
    """The list of gateway pods as the API server gives it; `error` makes the list fail."""

    def __init__(self, *, error: ClusterError | None = None) -> None:
        self.error = error

    async def list_kind(self, kind: Any, namespace: str, selector: str) -> Listing:
        assert "app.kubernetes.io/component=gateway" in selector
        if self.error is not None:
            raise self.error
        return Listing(items=[], version=1)


async def hear_gateways(world: World, gateways: FakeGateways) -> None:
    """One round of asking, without the endless loop around it."""
    await world.loads.ask_gateways(cast(KubeClient, gateways), "", cast(aiohttp.ClientSession, None))


def test_pressure_is_the_mean_of_fresh_loads() -> None:
    world = World()
    assert world.loads.pressure(QWEN) is None

    world.round(pressure=0.5)
    assert world.loads.pressure(QWEN) == 0.5
    world.now += 60
    assert world.loads.pressure(QWEN) is None


def test_resource_is_looked_at_only_when_its_rounded_pressure_changes() -> None:
    world = World()
    world.round(pressure=0.5)
    assert world.enqueued == [QWEN]

    world.put(a_manifest(status={"scaling": {"pressure": "0.5"}}))
    world.enqueued.clear()
    world.round(pressure=0.51)
    assert world.enqueued == []
    world.round(pressure=0.58)
    assert world.enqueued == [QWEN]


async def test_idle_model_wishes_for_zero_after_its_time() -> None:
    world = World(**SLEEPY)
    await hear_gateways(world, FakeGateways())

    world.wait(50)
    assert world.loads.zero_wish(QWEN) is None
    world.wait(20)
    wish = world.loads.zero_wish(QWEN)
    assert wish is not None
    assert "no request for 60 s" in wish.reason


async def test_request_starts_the_clock_anew() -> None:
    world = World(**SLEEPY)
    await hear_gateways(world, FakeGateways())
    world.wait(50)

    world.wait(2, requests=1)
    world.wait(50, requests=1)

    assert world.loads.zero_wish(QWEN) is None


@pytest.mark.parametrize("error", [None, ClusterError(403, "Forbidden", "no")])
async def test_nothing_goes_to_zero_while_gateways_are_unknown(error: ClusterError | None) -> None:
    world = World(**SLEEPY)
    if error is not None:
        await hear_gateways(world, FakeGateways(error=error))

    world.wait(100)

    assert world.loads.zero_wish(QWEN) is None


@pytest.mark.parametrize(("clock", "sleeps"), [("2026-03-02T19:58:00", False), ("2026-03-02T20:30:00", True)])
async def test_a_schedule_says_whether_an_idle_model_may_sleep(clock: str, sleeps: bool) -> None:
    """That it was idle before counts."""
    bounds = [{"name": "day", "cron": "0 8 * * *"}, {"name": "night", "cron": "0 20 * * *", "minReplicas": 0}]
    world = World(scaling={"maxReplicas": 2, "idleAfter": "60s", "schedules": bounds}, replicas=1)
    world.now = datetime.fromisoformat(f"{clock}Z").timestamp()
    await hear_gateways(world, FakeGateways())

    world.wait(70)

    assert (world.loads.zero_wish(QWEN) is not None) is sleeps


async def test_fixed_or_invalid_resource_never_wishes_for_zero() -> None:
    for spec in ({"replicas": 1}, {"model": "nonsense"}):
        world = World(**spec)
        await hear_gateways(world, FakeGateways())
        world.wait(100)
        assert world.loads.zero_wish(QWEN) is None


async def test_idleness_is_known_where_a_rollout_may_wait_for_it() -> None:
    world = World(rollout={"when": {"policy": "Idle"}})
    assert world.loads.idle_for_s(QWEN) is None

    world.wait(40, requests=1)
    world.wait(2, requests=2)
    world.wait(30, requests=2)
    assert world.loads.idle_for_s(QWEN) == 30
    world.now += 60
    world.loads.on_round()
    assert world.loads.idle_for_s(QWEN) is None, "the pod has not told its load for a minute"
    other = World()
    other.wait(40)
    assert other.loads.idle_for_s(QWEN) is None


def test_pods_are_told_to_scraper_and_adapter() -> None:
    (pod,) = World().loads.list_pods()

    assert (pod.model, pod.ip, pod.is_serving) == ("qwen", "10.0.0.7", True)


def test_capacity_is_what_the_ready_pods_tell_and_a_change_of_it_is_news() -> None:
    world = World()
    world.put(a_manifest(status={"scaling": {"pressure": "0"}}))
    world.round()
    assert world.loads.capacity(QWEN) is None
    assert world.enqueued == []

    world.round(kv_tokens=412_000, speed=3149.0)

    told = world.loads.capacity(QWEN)
    assert told == Capacity(kv_tokens=412_000, max_num_seqs=256, tokens_per_second=3149.0)
    assert world.enqueued == [QWEN]

    status = {"capacity": capacity_json(told), "scaling": {"pressure": "0"}}
    assert status["capacity"] == {"kvTokensPerReplica": 412_000, "maxConcurrent": 256, "tokensPerSecond": 3100}
    world.put(a_manifest(status=status))
    world.enqueued.clear()
    world.round(kv_tokens=412_000, speed=3120.0)
    assert world.enqueued == []
    world.round(kv_tokens=412_000, speed=math.inf)
    assert world.loads.capacity(QWEN) == Capacity(kv_tokens=412_000, max_num_seqs=256, tokens_per_second=0.0)


def test_tokens_in_flight_are_those_that_lie_in_the_cache_and_what_is_old_or_no_number_is_none() -> None:
    world = World(**SLEEPY)
    world.round(kv_tokens=1000, kv_usage=0.4567)
    assert world.loads.in_flight(QWEN) == {world.pod.name: 457}

    world.round(kv_tokens=1000, kv_usage=math.nan)
    assert world.loads.in_flight(QWEN) == {}

    world.round(kv_tokens=1000, kv_usage=0.5)
    world.now += 60
    assert world.loads.in_flight(QWEN) == {}
