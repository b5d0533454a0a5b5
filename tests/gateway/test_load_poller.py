"""What a replica says of its load: read where it can be believed, and harmless where it cannot."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from octavo_gateway import load_poller
from octavo_gateway.balancer import Load
from octavo_gateway.load_poller import parse_load
from octavo_testing.gateway import Bench, a_gateway, a_model, a_replica, an_upstream, until

HONEST = json.dumps({"pressure": 2.5, "running": 1, "waiting": 0}).encode()


def test_a_load_answer_is_read() -> None:
    answer = {"pressure": 1.7, "running": 3, "waiting": 2, "draining": True, "requests_total": 9}

    assert parse_load(answer) == Load(pressure=1.7, running=3, waiting=2, draining=True)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"pressure": "much", "running": 0, "waiting": 0},
        {"pressure": float("nan"), "running": 0, "waiting": 0},
        {"pressure": float("inf"), "running": 0, "waiting": 0},
        {"pressure": -0.1, "running": 0, "waiting": 0},
        {"pressure": 1e10, "running": 0, "waiting": 0},
        {"pressure": 0.1, "running": -1, "waiting": 0},
        {"pressure": 0.1, "running": 1, "waiting": -1},
        {"pressure": 0.1, "running": float("inf"), "waiting": 0},
        {"pressure": 0.1, "running": 1e308, "waiting": 1e308},
        {"pressure": 0.1, "running": 10**400, "waiting": 0},
    ],
)
def test_what_is_no_load_answer_is_refused(answer: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_load(answer)


class Liar:
    """A replica whose `/load` answers what it is told to, piece by piece; `sent` counts its bytes."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = [HONEST]
        self.sent = 0
        self.asked = 0

    async def load(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in self.pieces:
            await response.write(piece)
            self.sent += len(piece)
        return response


@contextlib.asynccontextmanager
async def beside_a_liar(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Liar, str, Bench]]:
    """A gateway in front of it and an honest replica."""
    monkeypatch.setattr(load_poller, "POLL_EVERY_S", 0.02)
    liar = Liar()
    app = web.Application()
    app.router.add_get("/load", liar.load)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with an_upstream() as honest, a_gateway(a_model("m", honest.replica(), a_replica("liar", url=url))) as bench:
        yield liar, url, bench
    await runner.cleanup()


@pytest.mark.parametrize(
    "told",
    [
        b"[" * 50_000,
        b"\xff\xfe",
        b'{"pressure": 0.1, "running": 1e308, "waiting": 1e308}',
        b'{"pressure": 0.1, "running": ' + b"9" * 5000 + b', "waiting": 0}',
    ],
    ids=["too deep", "no UTF-8", "too many", "too many digits"],
)
async def test_a_replica_that_lies_harms_nobody_and_is_heard_again_when_it_does_not(
    told: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with beside_a_liar(monkeypatch) as (liar, url, bench):
        liar.pieces = [told]
        asked = liar.asked
        await until(lambda: liar.asked >= asked + 3)
        chosen = [bench.gateway.router.balancer.choose(a, now=0.0) for a in bench.gateway.router.table.models.values()]
        assert None not in chosen

        liar.pieces = [HONEST]
        await until(lambda: bench.gateway.router.balancer.score(url) == 2.5)


async def test_an_endless_load_is_read_no_further_than_a_load_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    async with beside_a_liar(monkeypatch) as (liar, _, _):
        liar.pieces = [b" " * 2**20] * 1000
        liar.sent, asked = 0, liar.asked
        await until(lambda: liar.asked >= asked + 3)

    # What lies in the buffers of sockets was sent too.
    assert liar.sent < 20 * 2**20 * (liar.asked - asked)
