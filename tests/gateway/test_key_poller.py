"""Secrets are read when a model names them and again and again; what a failure means depends on what it is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from octavo_gateway.endpoints import Access, table_of
from octavo_gateway.errors import KubeApiError
from octavo_gateway.key_poller import POLL_EVERY_S, KeyPoller
from octavo_gateway.keys import Keyring
from octavo_gateway.metrics import Metrics
from octavo_testing.gateway import a_model


@dataclass
class PlayedSecrets:
    entries: dict[str, dict[str, bytes]] = field(default_factory=dict)
    failure: KubeApiError | None = None
    reads: list[str] = field(default_factory=list)

    async def read_secret(self, namespace: str, name: str) -> dict[str, bytes]:
        await asyncio.sleep(0.01)
        secret = f"{namespace}/{name}"
        self.reads.append(secret)
        if self.failure is not None:
            raise self.failure
        if secret not in self.entries:
            raise KubeApiError(404, f'secrets "{name}" not found')
        return self.entries[secret]


@dataclass
class Polled:
    poller: KeyPoller
    secrets: PlayedSecrets
    keyring: Keyring
    metrics: Metrics

    def follow(self, *names: str) -> None:
        self.poller.follow(table_of([a_model("m", access=Access(keys_from=names))]))

    @property
    def unreadable(self) -> float:
        value: float | None = self.metrics.registry.get_sample_value("octavo_gateway_unreadable_secrets")
        assert value is not None
        return value


@contextlib.asynccontextmanager
async def polling(**entries: bytes) -> AsyncIterator[Polled]:
    secrets, keyring, metrics = PlayedSecrets({"default/keys": entries}), Keyring(b"pepper"), Metrics()
    polled = Polled(KeyPoller(secrets, keyring, metrics), secrets, keyring, metrics)
    task = asyncio.create_task(polled.poller.run())
    try:
        yield polled
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.looptime
async def test_a_secret_is_read_as_soon_as_a_model_names_it_and_until_then_the_gateway_is_not_ready() -> None:
    async with polling(alice=b"sk-1") as polled:
        await asyncio.sleep(100)
        polled.follow("keys")
        assert not polled.poller.is_synced
        await asyncio.sleep(0.1)

        assert polled.poller.is_synced
        assert polled.keyring.knows("sk-1")


@pytest.mark.looptime
async def test_a_changed_key_counts_within_seconds() -> None:
    async with polling(alice=b"sk-1") as polled:
        polled.follow("keys")
        await asyncio.sleep(1)
        polled.secrets.entries["default/keys"] = {"alice": b"sk-2"}
        await asyncio.sleep(POLL_EVERY_S + 0.1)

        assert (polled.keyring.knows("sk-1"), polled.keyring.knows("sk-2")) == (False, True)


@pytest.mark.looptime
@pytest.mark.parametrize(("status", "still"), [(0, True), (429, True), (500, True), (403, False), (404, False)])
async def test_an_outage_leaves_the_keys_that_were_read_and_a_refusal_ends_them(status: int, still: bool) -> None:
    async with polling(alice=b"sk-1") as polled:
        polled.follow("keys")
        await asyncio.sleep(1)
        polled.secrets.failure = KubeApiError(status, "no")
        await asyncio.sleep(2 * POLL_EVERY_S)
        during = polled.keyring.knows("sk-1")
        troubles = polled.unreadable
        polled.secrets.failure = None
        await asyncio.sleep(2 * POLL_EVERY_S)

        assert (during, troubles) == (still, 0 if still else 1)
        assert (polled.keyring.knows("sk-1"), polled.unreadable) == (True, 0)


@pytest.mark.looptime
async def test_a_secret_that_is_missing_at_first_is_taken_when_it_comes() -> None:
    async with polling() as polled:
        polled.follow("late")
        await asyncio.sleep(1)
        assert (polled.poller.is_synced, polled.unreadable) == (True, 1)
        polled.secrets.entries["default/late"] = {"bob": b"sk-3"}
        await asyncio.sleep(POLL_EVERY_S + 0.1)

        assert (polled.keyring.knows("sk-3"), polled.unreadable) == (True, 0)


@pytest.mark.looptime
async def test_with_many_secrets_at_most_twenty_a_second_are_asked_for_after_the_first_round() -> None:
    async with polling() as polled:
        polled.follow(*(f"s{number}" for number in range(400)))
        await asyncio.sleep(5)
        assert len(polled.secrets.reads) == 400
        await asyncio.sleep(100)

        assert len(polled.secrets.reads) <= 400 + 105 * 20


@pytest.mark.looptime
async def test_what_no_model_names_any_more_is_neither_read_nor_kept() -> None:
    async with polling(alice=b"sk-1") as polled:
        polled.follow("keys")
        await asyncio.sleep(1)
        polled.follow()
        before = len(polled.secrets.reads)
        await asyncio.sleep(5 * POLL_EVERY_S)

        assert len(polled.secrets.reads) == before
        assert not polled.keyring.knows("sk-1")


@pytest.mark.looptime
async def test_entries_that_can_be_no_keys_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async with polling(alice=b"sk-1", two=b"sk-2\nsk-3") as polled:
        polled.follow("keys")
        await asyncio.sleep(10 * POLL_EVERY_S)

    (told,) = [record for record in caplog.records if "can be no keys" in record.message]
    assert (told.entries, told.number) == (("two",), 1)  # type: ignore[attr-defined]
