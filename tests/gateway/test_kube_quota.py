"""Who is ready, the shared secret, and saved days, at an API server that the test plays."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from octavo_gateway.errors import KubeApiError
from octavo_gateway.kube_quota import MAX_PER_SHARD, SHARDS, KubeQuotaBackend, entry_of, read_slice
from octavo_gateway.metrics import Metrics
from octavo_gateway.quotas import SavedDay
from octavo_testing.gateway import until


@dataclass
class PlayedApi:
    """Secrets and ConfigMaps with merge patches and resource versions, and one list of EndpointSlices."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    slices: list[dict[str, Any]] = field(default_factory=list)
    events: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    patches: int = 0
    in_between: list[dict[str, Any]] = field(default_factory=list)
    """Patches that somebody else writes just before ours."""

    async def request(self, method: str, path: str, query: Mapping[str, str], body: Any = None) -> dict[str, Any]:
        name = path.rpartition("/")[2]
        if name == "endpointslices":
            assert query["labelSelector"] == "kubernetes.io/service-name=gw-internal"
            return {"metadata": {"resourceVersion": "1"}, "items": self.slices}
        thing = self.objects.setdefault(name, {"metadata": {"resourceVersion": "1"}})
        if method == "PATCH":
            if self.in_between:
                self._patch(thing, self.in_between.pop())
            version = (body.get("metadata") or {}).get("resourceVersion")
            if version is not None and version != thing["metadata"]["resourceVersion"]:
                raise KubeApiError(409, "the object has been modified")
            self.patches += 1
            self._patch(thing, body)
        return thing

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
        while True:
            yield await self.events.get()

    @staticmethod
    def _patch(thing: dict[str, Any], body: dict[str, Any]) -> None:
        data = thing.setdefault("data", {})
        for entry, value in body["data"].items():
            if value is None:
                data.pop(entry, None)
            else:
                data[entry] = value
        thing["metadata"]["resourceVersion"] = str(int(thing["metadata"]["resourceVersion"]) + 1)


def a_backend(api: PlayedApi, metrics: Metrics | None = None) -> KubeQuotaBackend:
    return KubeQuotaBackend(api, metrics or Metrics(), namespace="sys", prefix="gw")


def a_slice(name: str, *endpoints: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"namespace": "sys", "name": name, "resourceVersion": "1"}, "endpoints": list(endpoints)}


def test_an_endpoint_is_ready_unless_it_is_said_not_to_be() -> None:
    thing = a_slice(
        "x",
        {"addresses": ["10.0.0.1"], "conditions": {"ready": True}},
        {"addresses": ["10.0.0.2"], "conditions": {"ready": False}},
        {"addresses": ["10.0.0.3"], "conditions": {}},
        {"addresses": ["10.0.0.4"]},
    )

    assert read_slice(thing) == ("10.0.0.1", "10.0.0.3", "10.0.0.4")
    assert read_slice(a_slice("x")) == ()


async def test_who_is_ready_is_told_at_first_and_at_each_change() -> None:
    api = PlayedApi(slices=[a_slice("a", {"addresses": ["10.0.0.1"]}), a_slice("b", {"addresses": ["10.0.0.2"]})])
    told: list[list[str]] = []
    watching = asyncio.create_task(a_backend(api).watch_ready(lambda addresses: told.append(sorted(addresses))))
    await until(lambda: told == [["10.0.0.1", "10.0.0.2"]])
    await api.events.put({"type": "DELETED", "object": a_slice("a")})
    await until(lambda: told[-1] == ["10.0.0.2"])
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching


async def test_the_first_gateway_makes_the_secret_and_the_others_read_it() -> None:
    api = PlayedApi()

    made = await a_backend(api).peer_secret()
    read = await a_backend(api).peer_secret()

    assert made == read
    assert len(made) == 32
    assert api.patches == 1


async def test_of_two_that_make_the_secret_at_once_the_later_takes_the_earlier_ones() -> None:
    theirs = base64.b64encode(b"t" * 32).decode()
    api = PlayedApi(in_between=[{"data": {"token": theirs}}])

    assert await a_backend(api).peer_secret() == b"t" * 32


async def test_days_come_back_as_they_were_saved_and_the_forgotten_do_not() -> None:
    api = PlayedApi()
    days = {f"default/m default/keys/k{number}": SavedDay(day=5, tokens={"boot": number}) for number in range(50)}
    await a_backend(api).save_days(days)
    gone = next(iter(days))
    await a_backend(api).save_days({gone: None})

    found = await a_backend(api).load_days()

    assert found == {account: saved for account, saved in days.items() if account != gone}
    assert len([name for name in api.objects if "-quota-" in name]) == SHARDS


async def test_an_entry_that_somebody_else_wrote_is_ignored() -> None:
    api = PlayedApi({"gw-quota-0": {"metadata": {"resourceVersion": "1"}, "data": {"x": "no JSON", "y": '{"day": 1}'}}})

    assert await a_backend(api).load_days() == {}


async def test_a_full_map_takes_no_more_accounts_and_that_is_counted() -> None:
    api, metrics = PlayedApi(), Metrics()
    backend = a_backend(api, metrics)
    accounts = [f"account {number}" for number in range(3 * MAX_PER_SHARD)]
    first = [account for account in accounts if int(entry_of(account), 16) % SHARDS == 0]
    many = {f"{account} {turn}": SavedDay(day=1, tokens={}) for account in accounts for turn in range(4)}
    await backend.save_days(many)

    unsaved = metrics.registry.get_sample_value("octavo_gateway_unsaved_days_total")

    assert first
    assert max(len(thing["data"]) for thing in api.objects.values()) == MAX_PER_SHARD
    assert unsaved == len(many) - SHARDS * MAX_PER_SHARD


async def test_a_refusal_is_told() -> None:
    class Forbidden(PlayedApi):
        async def request(self, method: str, path: str, query: Mapping[str, str], body: Any = None) -> dict[str, Any]:
            raise KubeApiError(403, "configmaps is forbidden")

    with pytest.raises(KubeApiError, match="forbidden"):
        await a_backend(Forbidden()).load_days()
