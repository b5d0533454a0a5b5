"""Whatever goes wrong, and whenever: every accepted request ends exactly once, and an engine that lives holds nothing after."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo_server.engine.async_engine import AsyncEngine, EngineState
from octavo_server.engine.engine import OutputDelta
from octavo_server.engine.engine_thread import EngineThread
from octavo_server.engine.request import FinishReason, Request, SamplingParams
from octavo_server.engine.request_stream import RequestStream
from octavo_server.errors import EngineDeadError, QueueFullError
from octavo_server.metrics import ServerMetrics
from octavo_server.tokenizer.tokenizer import load_tokenizer
from octavo_testing.fake_engine import NOT_FINITE, POISON, FakeParts, fake_engine
from octavo_testing.remote_engine import RemoteEngine, remote_engine
from octavo_testing.server import samples

FULL = bool(os.environ.get("OCTAVO_FULL"))
BLOCKS, SEQS = 12, 4
"""So few that requests wait and are preempted."""


@dataclass(frozen=True)
class Submit:
    """Prompts of one client; some raise, some fail alone, some share their beginning."""

    prompts: tuple[tuple[int, ...], ...]
    n: int
    max_tokens: int


@dataclass(frozen=True)
class Leave:
    """The client of an earlier Submit goes away."""

    number: int


@dataclass(frozen=True)
class Read:
    """Lets the engine work until so many deltas have come to anybody."""

    num_deltas: int


@dataclass(frozen=True)
class Break:
    """One of the engine's parts fails from now on, or once."""

    what: str
    numbers: tuple[int, ...] = ()


REFUSED = (9999,)
"""A token that the vocabulary does not have."""
PROMPTS = st.sampled_from(
    [(5,) * 40, (5,) * 33 + (6,), (7, 8), (POISON,), (POISON,) * 20, (NOT_FINITE, 3), (9,) * 100, REFUSED]
)
ACTIONS = st.one_of(
    st.builds(
        Submit, prompts=st.lists(PROMPTS, min_size=1, max_size=3).map(tuple), n=st.integers(1, 3),
        max_tokens=st.integers(0, 40),
    ),
    st.builds(Leave, st.integers(0, 5)),
    st.builds(Read, st.integers(1, 12)),
    st.builds(Break, st.just("break_steps"), st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)),
    st.builds(Break, st.just("break_tokens"), st.lists(st.integers(2, 511), min_size=8, max_size=8).map(tuple)),
)  # fmt: skip
ENDS = st.sampled_from([None, None, Break("break_engine"), Break("exit"), Break("kill")])


@dataclass
class Client:
    """One that reads until its end, or leaves before."""

    stream: RequestStream
    deltas: list[OutputDelta] = field(default_factory=list)
    has_left: bool = False

    async def read(self, seen: asyncio.Event) -> None:
        while deltas := await self.stream.read():
            self.deltas += deltas
            seen.set()


async def run(engine: AsyncEngine, fake: FakeParts | RemoteEngine, actions: list[Any], number: str) -> list[Client]:
    clients: list[Client] = []
    readers: list[asyncio.Task[None]] = []
    seen = asyncio.Event()
    for count, action in enumerate(actions):
        if isinstance(action, Submit):
            params = SamplingParams(n=action.n, max_tokens=action.max_tokens, temperature=1.0, ignore_eos=True)
            requests = [
                Request(request_id=f"{number}-{count}-{place}", prompt_token_ids=p, params=params, arrival_s=0.0)
                for place, p in enumerate(action.prompts)
            ]
            try:
                client = Client(engine.submit(requests))
            except (QueueFullError, EngineDeadError):
                continue
            clients.append(client)
            readers.append(asyncio.create_task(client.read(seen)))
        elif isinstance(action, Leave) and action.number < len(clients):
            client = clients[action.number]
            client.has_left = True
            engine.abort(client.stream)
            readers[action.number].cancel()
        elif isinstance(action, Read):
            for _ in range(action.num_deltas):
                if all(reader.done() for reader in readers):
                    break
                seen.clear()
                await asyncio.wait([asyncio.create_task(seen.wait()), *readers], return_when=asyncio.FIRST_COMPLETED)
        elif isinstance(action, Break):
            getattr(fake, action.what)(*action.numbers)
    async with asyncio.timeout(30):
        await asyncio.gather(*readers, return_exceptions=True)
    return clients


def check_each_ended_once(clients: list[Client]) -> None:
    for client in clients:
        ends = Counter((d.request_id, d.index) for d in client.deltas if d.finish_reason is not None)
        after = [d for d in client.deltas if d.finish_reason is FinishReason.ABORT]
        assert not after, "nobody reads an abort"
        assert set(ends.values()) <= {1}
        if not client.has_left:
            expected = {(r.request_id, index) for r in client.stream.requests for index in range(r.params.n)}
            assert expected == set(ends)


async def check_at_rest(engine: AsyncEngine, metrics: ServerMetrics, clients: list[Client]) -> None:
    """The engine lives, holds nothing, and has counted the end of each request that it took."""
    num_taken = sum(r.prompt_token_ids != REFUSED for client in clients for r in client.stream.requests)
    async with asyncio.timeout(10):
        while ended(metrics) < num_taken:
            await asyncio.sleep(0.001)
    now = engine.snapshot
    assert (now.num_running, now.num_waiting, now.kv_usage, now.pressure) == (0, 0, 0, 0)
    assert ended(metrics) == num_taken
    assert engine.num_unfinished == 0


def ended(metrics: ServerMetrics) -> float:
    ((_, count),) = samples(metrics.render().decode(), "vllm:e2e_request_latency_seconds_count")
    return count


@settings(max_examples=400 if FULL else 25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(ACTIONS, min_size=3, max_size=14), end=ENDS)
def test_on_a_thread(tokenizer_folder: Path, actions: list[Any], end: Break | None) -> None:
    async def scenario() -> None:
        fake = fake_engine(load_tokenizer(tokenizer_folder), blocks=BLOCKS, seqs=SEQS)
        metrics = ServerMetrics("m", lambda: engine.snapshot)
        engine = AsyncEngine(EngineThread(lambda _: fake.loaded), on_records=metrics.record, max_num_queued_reqs=20)
        engine.start()
        await engine.wait_until(EngineState.READY)
        dies = end is not None and end.what == "break_engine"
        clients = await run(engine, fake, [*actions, end, Submit(((5, 6),), 1, 4)] if dies else actions, "a")
        check_each_ended_once(clients)
        if engine.state is EngineState.READY:
            await check_at_rest(engine, metrics, clients)
            fake.scheduler.check_integrity()
        assert await engine.aclose()

    asyncio.run(scenario())


@settings(max_examples=100 if FULL else 6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(ACTIONS, min_size=3, max_size=14), end=ENDS)
def test_in_a_process(tokenizer_folder: Path, actions: list[Any], end: Break | None) -> None:
    async def scenario() -> None:
        with remote_engine(tokenizer_folder, blocks=BLOCKS, seqs=SEQS) as fake:
            metrics = ServerMetrics("m", lambda: engine.snapshot)
            engine = AsyncEngine(fake.host, on_records=metrics.record, max_num_queued_reqs=20)
            engine.start()
            await engine.wait_until(EngineState.READY)
            clients = await run(
                engine, fake, actions if end is None else [*actions, Submit(((5,) * 30,), 3, 40), end], "a"
            )
            check_each_ended_once(clients)
            if engine.state is EngineState.READY and end is None:
                await check_at_rest(engine, metrics, clients)
            assert await engine.aclose()

    asyncio.run(scenario())
