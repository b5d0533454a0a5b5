"""Leadership: one holder, who knows when it is no longer sure."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any, cast

import pytest

from octavo_operator.errors import ClusterError
from octavo_operator.kube.client import KubeClient
from octavo_operator.leader import LEASE_S, MARGIN_S, LeaderElection


class FakeLeases:
    """One Lease with optimistic locking, as the API server keeps it; `down` makes every call fail."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.down = False
        self.writes = 0

    async def get_path(self, path: str) -> dict[str, Any] | None:
        self._check()
        return copy.deepcopy(self.lease)

    async def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self._check()
        if self.lease is not None:
            raise ClusterError(409, "AlreadyExists", "exists")
        return self._store(body)

    async def replace(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self._check()
        assert self.lease is not None
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ClusterError(409, "Conflict", "modified")
        return self._store(body)

    def _store(self, body: dict[str, Any]) -> dict[str, Any]:
        self.writes += 1
        self.lease = copy.deepcopy({**body, "metadata": {**body["metadata"], "resourceVersion": str(self.writes)}})
        return self.lease

    def _check(self) -> None:
        if self.down:
            raise ClusterError(0, "Unreachable", "down")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases() -> FakeLeases:
    return FakeLeases()


def an_election(
    leases: FakeLeases, clock: Callable[[], float], identity: str, heard: list[bool] | None = None
) -> LeaderElection:
    told = [] if heard is None else heard
    kube = cast(KubeClient, leases)
    return LeaderElection(kube, namespace="sys", name="lease", identity=identity, on_change=told.append, clock=clock)


async def test_first_comer_leads_and_second_waits(leases: FakeLeases, clock: Clock) -> None:
    first, second = (an_election(leases, clock, name) for name in ("a", "b"))

    await first.attempt()
    await second.attempt()

    assert (first.is_leader, second.is_leader) == (True, False)
    assert leases.lease is not None
    assert leases.lease["spec"]["holderIdentity"] == "a"


async def test_holder_that_renews_keeps_the_lease(leases: FakeLeases, clock: Clock) -> None:
    first, second = (an_election(leases, clock, name) for name in ("a", "b"))
    for _ in range(20):
        await first.attempt()
        await second.attempt()
        clock.now += LEASE_S / 3

    assert not second.is_leader
    assert leases.lease is not None
    assert leases.lease["spec"]["leaseTransitions"] == 1


async def test_lease_that_stands_still_is_taken_over_and_never_held_by_two(leases: FakeLeases, clock: Clock) -> None:
    heard: list[bool] = []
    first, second = an_election(leases, clock, "a", heard), an_election(leases, clock, "b")
    await first.attempt()
    await second.attempt()

    while not second.is_leader:
        assert clock.now < 200
        clock.now += 1
        await second.attempt()

    assert clock.now - 100 > LEASE_S
    assert not first.is_leader
    await first.attempt()
    assert heard == [True, False]


async def test_holder_that_cannot_renew_stops_before_others_may_start(leases: FakeLeases, clock: Clock) -> None:
    leader = an_election(leases, clock, "a")
    await leader.attempt()
    leases.down = True

    clock.now += LEASE_S - MARGIN_S - 0.1
    await leader.attempt()
    assert leader.is_leader
    clock.now += 0.2
    assert not leader.is_leader


async def test_race_for_a_free_lease_has_one_winner(leases: FakeLeases, clock: Clock) -> None:
    first, second = (an_election(leases, clock, name) for name in ("a", "b"))
    await first.attempt()
    assert leases.lease is not None
    leases.lease["spec"]["holderIdentity"] = ""
    stale = copy.deepcopy(leases.lease)
    await first.attempt()
    current, leases.lease = leases.lease, stale

    async def replace(path: str, body: dict[str, Any]) -> dict[str, Any]:
        leases.lease = current
        return await FakeLeases.replace(leases, path, body)

    leases.replace = replace  # type: ignore[method-assign]  # the other writes between our read and our write
    await second.attempt()

    assert (first.is_leader, second.is_leader) == (True, False)


@pytest.mark.looptime
async def test_holder_gives_the_lease_back_when_it_ends(leases: FakeLeases, clock: Clock) -> None:
    first, second = (an_election(leases, clock, name) for name in ("a", "b"))
    task = asyncio.create_task(first.run())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    await second.attempt()

    assert (first.is_leader, second.is_leader) == (False, True)
