"""Several gateways in one process on virtual time: a key gets its tokens, and hardly more, whichever gateways it asks."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from octavo_gateway.errors import QuotaExceeded
from octavo_gateway.metrics import Metrics
from octavo_gateway.quota import Grant, Limits
from octavo_gateway.quotas import FLUSH_EVERY_S, Entry, PeerSilent, Quotas, SavedDay, Size

ACCOUNT = "default/m default/keys/alice"
MIDNIGHT = 20_000 * 86_400.0
TIMEOUT_S = 1.0
SETTLED_S = 5.0


@dataclass
class Network:
    """Gateways that reach each other after a moment, but for those that are down."""

    gateways: dict[str, Quotas] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    messages: int = 0

    async def ask(self, peer: str, gateway: str, entries: Sequence[Entry]) -> list[Grant]:
        self.messages += 1
        await asyncio.sleep(0.002)
        if peer in self.down:
            await asyncio.sleep(TIMEOUT_S)
            raise PeerSilent("time-out")
        return self.gateways[peer].answer(gateway, entries)


@dataclass
class PlayedStore:
    saved: dict[str, SavedDay] = field(default_factory=dict)
    writes: int = 0

    async def load_days(self) -> dict[str, SavedDay]:
        return dict(self.saved)

    async def save_days(self, changes: Mapping[str, SavedDay | None]) -> None:
        self.writes += 1
        for account, saved in changes.items():
            if saved is None:
                self.saved.pop(account, None)
            else:
                self.saved[account] = saved


@dataclass
class Cluster:
    network: Network
    wall_offset: float = MIDNIGHT
    starts: int = 0

    def add(self, name: str) -> Quotas:
        """A gateway that has just started, and so has a new name in ledgers."""
        self.starts += 1
        loop = asyncio.get_running_loop()
        self.network.gateways[name] = Quotas(
            me=name,
            boot=f"boot-{self.starts}-{name}",
            peers=self.network,
            metrics=Metrics(),
            clock=loop.time,
            wall_clock=lambda: self.wall_offset + loop.time(),
        )
        return self.network.gateways[name]

    def set_ready(self, *names: str) -> None:
        for gateway in self.network.gateways.values():
            gateway.set_ready(names)

    def owner(self) -> str:
        return next(iter(self.network.gateways.values()))._owner(ACCOUNT)


@contextlib.asynccontextmanager
async def a_cluster(size: int, *, starts: int = 0) -> AsyncIterator[Cluster]:
    cluster = Cluster(Network(), starts=starts)
    names = [f"10.0.0.{number}" for number in range(size)]
    gateways = [cluster.add(name) for name in names]
    cluster.set_ready(*names)
    flushing = [asyncio.create_task(flush_for_ever(gateway)) for gateway in gateways]
    try:
        yield cluster
    finally:
        for task in flushing:
            task.cancel()
        await asyncio.gather(*flushing, return_exceptions=True)


async def flush_for_ever(gateway: Quotas) -> None:
    while True:
        await asyncio.sleep(FLUSH_EVERY_S)
        await gateway.flush()


@dataclass
class Client:
    """Asks without a pause; each answer takes so many tokens and so long."""

    gateways: Sequence[Quotas]
    limits: Limits
    prompt_tokens: int = 40
    output_tokens: int = 60
    seconds: float = 0.5
    max_tokens: int | None = None
    rng: random.Random = field(default_factory=lambda: random.Random(5))
    used: list[tuple[float, int]] = field(default_factory=list)
    """When it was let in, and what it took."""
    refused: list[QuotaExceeded] = field(default_factory=list)

    async def ask_for(self, seconds: float, *, at_once: int) -> None:
        end = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(*(self._ask_until(end) for _ in range(at_once)))

    async def _ask_until(self, end: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < end:
            gateway = self.rng.choice(self.gateways)
            size = Size(num_bytes=4 * self.prompt_tokens, max_tokens=self.max_tokens)
            try:
                reservation = await gateway.admit(ACCOUNT, self.limits, size)
            except QuotaExceeded as refusal:
                self.refused.append(refusal)
                await asyncio.sleep(1.0)
                continue
            self.used.append((loop.time(), self.prompt_tokens + self.output_tokens))
            await asyncio.sleep(self.seconds)
            gateway.settle(reservation, prompt_tokens=self.prompt_tokens, output_tokens=self.output_tokens)

    def most_in_a_minute(self) -> int:
        return max(sum(n for at, n in self.used if start <= at < start + 60) for start, _ in self.used)

    @property
    def total(self) -> int:
        return sum(tokens for _, tokens in self.used)


@pytest.mark.looptime
@pytest.mark.parametrize("size", [1, 2, 5])
async def test_over_any_minute_a_key_gets_its_tokens_and_at_most_a_twentieth_more(size: int) -> None:
    limits = Limits(per_minute=10_000)
    async with a_cluster(size) as cluster:
        client = Client(list(cluster.network.gateways.values()), limits)
        await client.ask_for(180, at_once=8)

    assert client.most_in_a_minute() <= 1.05 * limits.per_minute
    assert client.total >= 0.9 * 3 * limits.per_minute


@pytest.mark.looptime
async def test_the_same_holds_for_a_few_large_requests_whose_size_is_learnt() -> None:
    limits = Limits(per_minute=20_000)
    async with a_cluster(3) as cluster:
        client = Client(list(cluster.network.gateways.values()), limits, prompt_tokens=300, output_tokens=500)
        await client.ask_for(120, at_once=4)
        learnt = Client(client.gateways, limits, prompt_tokens=300, output_tokens=500, seconds=5)
        await asyncio.sleep(60)
        await learnt.ask_for(180, at_once=10)

    assert learnt.most_in_a_minute() <= 1.05 * limits.per_minute
    assert learnt.total >= 0.8 * 3 * limits.per_minute


@pytest.mark.looptime
async def test_a_refusal_says_both_numbers_and_when_to_come_back_and_then_it_works() -> None:
    limits = Limits(per_minute=1000)
    async with a_cluster(2) as cluster:
        gateways = list(cluster.network.gateways.values())
        client = Client(gateways, limits)
        await client.ask_for(10, at_once=5)
        refusal = client.refused[-1]
        retry_after_s = int(refusal.headers["Retry-After"])
        await asyncio.sleep(retry_after_s)
        await gateways[1].admit(ACCOUNT, limits, Size(num_bytes=160))

    assert (refusal.status, refusal.code) == (429, "tokens_per_minute_exceeded")
    assert "may use 1000 tokens a minute" in refusal.message
    assert refusal.headers["X-RateLimit-Limit-Tokens"] == "1000"
    assert 0 < retry_after_s <= 60


@pytest.mark.looptime
async def test_a_day_holds_over_all_gateways_and_ends_at_midnight() -> None:
    limits = Limits(per_day=50_000)
    async with a_cluster(3) as cluster:
        cluster.wall_offset = MIDNIGHT + 86_400 - 200
        client = Client(list(cluster.network.gateways.values()), limits)
        await client.ask_for(190, at_once=8)
        first_day, refusal = client.total, client.refused[-1]
        await asyncio.sleep(20)
        await client.ask_for(5, at_once=1)

    assert 0.9 * limits.per_day <= first_day <= 1.05 * limits.per_day
    assert refusal.code == "tokens_per_day_exceeded"
    assert 0 < int(refusal.headers["Retry-After"]) <= 200
    assert client.total > first_day


@pytest.mark.looptime
async def test_where_the_owner_is_silent_each_gateway_uses_its_part() -> None:
    limits = Limits(per_minute=15_000)
    async with a_cluster(3) as cluster:
        cluster.network.down.add(cluster.owner())
        others = [gateway for name, gateway in cluster.network.gateways.items() if name != cluster.owner()]
        client = Client(others, limits)
        await client.ask_for(120, at_once=10)

    assert client.most_in_a_minute() <= 1.05 * limits.per_minute * 2 / 3
    assert client.total >= 0.8 * 2 * limits.per_minute * 2 / 3


@pytest.mark.looptime
async def test_a_new_owner_learns_within_moments_what_was_spent_under_the_old_one() -> None:
    """A rolling update of the gateways in the middle of a minute."""
    limits = Limits(per_minute=8_000)
    async with a_cluster(3) as cluster:
        leaving = cluster.owner()
        spender, asker = (gateway for name, gateway in cluster.network.gateways.items() if name != leaving)
        spent, asked = Client([spender], limits), Client([asker], limits)
        await spent.ask_for(20, at_once=10)
        cluster.set_ready(*(name for name in cluster.network.gateways if name != leaving))
        await asyncio.sleep(2 * FLUSH_EVERY_S)
        await asked.ask_for(20, at_once=10)

    assert spent.total >= 0.9 * limits.per_minute
    assert spent.total + asked.total <= 1.05 * limits.per_minute


@pytest.mark.looptime
async def test_a_key_far_below_its_limit_asks_its_owner_once_in_a_while() -> None:
    async with a_cluster(2) as cluster:
        other = next(gateway for name, gateway in cluster.network.gateways.items() if name != cluster.owner())
        client = Client([other], Limits(per_minute=10_000_000), seconds=0.01)
        await client.ask_for(5, at_once=2)

    assert len(client.used) > 500
    assert cluster.network.messages < 60


@pytest.mark.looptime
async def test_failed_requests_cost_nothing() -> None:
    limits = Limits(per_minute=1000)
    async with a_cluster(1) as cluster:
        (gateway,) = cluster.network.gateways.values()
        for _ in range(200):
            reservation = await gateway.admit(ACCOUNT, limits, Size(num_bytes=160))
            gateway.settle(reservation, prompt_tokens=0, output_tokens=0)


@pytest.mark.looptime
async def test_days_outlive_all_gateways_but_for_what_was_not_saved_yet() -> None:
    limits, store = Limits(per_day=5_000), PlayedStore()
    async with a_cluster(2) as cluster:
        client = Client(list(cluster.network.gateways.values()), limits)
        await client.ask_for(60, at_once=5)
        await asyncio.sleep(SETTLED_S)
        for gateway in cluster.network.gateways.values():
            await gateway.save(store)
            await gateway.save(store)
    assert store.writes == 1

    async with a_cluster(2, starts=2) as cluster:
        for gateway in cluster.network.gateways.values():
            await gateway.load(store)
        again = Client(list(cluster.network.gateways.values()), limits)
        await again.ask_for(5, at_once=5)

    assert sum(store.saved[ACCOUNT].tokens.values()) == client.total
    assert client.total + again.total <= 1.05 * limits.per_day


@pytest.mark.looptime
async def test_yesterdays_days_are_removed_from_the_store() -> None:
    store = PlayedStore({ACCOUNT: SavedDay(day=19_999, tokens={"boot-x": 7})})
    async with a_cluster(1) as cluster:
        (gateway,) = cluster.network.gateways.values()
        await gateway.load(store)
        await gateway.save(store)

    assert store.saved == {}


@pytest.mark.looptime
async def test_a_clock_that_was_wrong_for_a_while_gives_one_more_day_at_most() -> None:
    limits, store = Limits(per_day=20_000), PlayedStore()
    async with a_cluster(2) as cluster:
        gateways = list(cluster.network.gateways.values())
        cluster.wall_offset += 40 * 86_400
        await Client(gateways, limits).ask_for(60, at_once=8)
        for gateway in gateways:
            await gateway.save(store)
        written = store.saved[ACCOUNT].day

        cluster.wall_offset -= 40 * 86_400
        client = Client(gateways, limits)
        await client.ask_for(120, at_once=8)
        for gateway in gateways:
            await gateway.save(store)

    assert written == 20_040
    assert client.refused[-1].code == "tokens_per_day_exceeded"
    assert client.total <= 1.05 * limits.per_day
    assert store.saved[ACCOUNT].day == 20_000


@pytest.mark.looptime
async def test_a_saved_day_to_come_is_not_believed_and_removed() -> None:
    store = PlayedStore({ACCOUNT: SavedDay(day=47_000, tokens={"boot-x": 7})})
    limits = Limits(per_day=2_000)
    async with a_cluster(1) as cluster:
        (gateway,) = cluster.network.gateways.values()
        await gateway.load(store)
        client = Client([gateway], limits)
        await client.ask_for(60, at_once=4)
        await gateway.save(store)

    assert client.total <= 1.05 * limits.per_day
    assert store.saved[ACCOUNT].day == 20_000


@pytest.mark.looptime
async def test_accounts_and_ledgers_are_forgotten_when_nothing_in_them_counts() -> None:
    async with a_cluster(1) as cluster:
        (gateway,) = cluster.network.gateways.values()
        for number in range(50):
            await gateway.admit(f"account {number}", Limits(per_minute=1000), Size(num_bytes=160))
        before = len(gateway._open), len(gateway._ledgers)
        cluster.wall_offset += 86_400
        await asyncio.sleep(300)
        for gateway in cluster.network.gateways.values():
            await gateway.save(PlayedStore())
        await asyncio.sleep(5)

        assert before == (50, 50)
        assert (len(gateway._open), len(gateway._ledgers)) == (0, 0)
