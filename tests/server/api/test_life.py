"""Loading, draining, dying, full queues, clients that go away: on the real loop, with a model that the test holds."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from octavo_server.api.completions import CompletionShape
from octavo_server.api.server import serve
from octavo_server.api.state import ServerState
from octavo_server.config import ServerConfig
from octavo_server.engine.async_engine import AsyncEngine, EngineState
from octavo_server.engine.build import LoadedEngine
from octavo_server.engine.engine import MAX_FAILED_STEPS
from octavo_server.engine.engine_thread import EngineThread
from octavo_server.engine.request import FinishReason, Request, SamplingParams
from octavo_server.engine.startup import StartupProgress
from octavo_server.errors import EngineDeadError, EngineStuckError, StartupError
from octavo_server.metrics import ServerMetrics
from octavo_server.tokenizer.tokenizer import load_tokenizer
from octavo_testing.server import POISON, Server, a_chat, a_completion, fake_engine, fake_server, running

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(params=["in", "out"])
def where(request: pytest.FixtureRequest) -> str:
    """Where the engine runs: what holds for one must hold for the other."""
    return str(request.param)


@pytest.fixture
async def server(tokenizer_folder: Path, where: str) -> AsyncIterator[Server]:
    async with fake_server(tokenizer_folder, where=where) as made:
        yield made


def runner_of(server: Server) -> Any:
    assert server.fake is not None
    return server.fake.runner


def is_at_rest(server: Server) -> bool:
    """Whether the engine has taken all that was submitted, and reported since that it holds nothing."""
    engine = server.state.engine
    now = engine.snapshot
    return engine._num_waiting() == 0 and (now.num_running, now.kv_usage, now.pressure) == (0, 0, 0)


async def test_while_loading_the_port_answers_and_generation_is_503(tokenizer_folder: Path) -> None:
    gate = threading.Event()

    def build(progress: StartupProgress) -> LoadedEngine:
        progress.enter("loading_weights")
        progress.add_bytes(5, 10)
        assert gate.wait(30)
        return fake_engine(load_tokenizer(tokenizer_folder)).loaded

    async with running(build, wait=False) as server:
        await server.until(lambda: server.state.engine.progress.bytes == 5)
        startup = (await server.get("/startup")).json
        codes = {
            path: (await server.get(path)).status for path in ("/health", "/ready", "/load", "/metrics", "/version")
        }
        refused = await server.post(CHAT, a_chat())
        gate.set()
        await server.state.engine.wait_until(EngineState.READY)
        later = (await server.get("/startup")).json
        ready = (await server.get("/ready")).status

    assert (startup["stage"], startup["bytes"], startup["total_bytes"]) == ("loading_weights", 5, 10)
    assert codes == {"/health": 200, "/ready": 503, "/load": 200, "/metrics": 200, "/version": 200}
    assert (refused.status, refused.json["error"]["code"], refused.headers["Retry-After"]) == (503, "loading", "5")
    assert (later["stage"], ready) == ("ready", 200)
    assert {"starting", "loading_weights"} == set(later["stage_seconds"])


async def test_the_server_tells_its_settings_and_what_they_became(tokenizer_folder: Path, where: str) -> None:
    async with fake_server(tokenizer_folder, where=where, blocks=40, api_key=("key",)) as server:
        server.state.engine_settings = {"quantization": "none"}
        refused = await server.get("/server_info")
        told = (await server.get("/server_info", headers={"Authorization": "Bearer key"})).json

    assert refused.status == 401
    assert (told["settings"], told["resolved"]) == ({"quantization": "none"}, {"kernels": "fake", "num_blocks": 41})
    assert told["environment"]["cpus"] >= 1


async def test_loading_without_progress_is_unhealthy(tokenizer_folder: Path) -> None:
    gate = threading.Event()

    def build(_: StartupProgress) -> LoadedEngine:
        assert gate.wait(30)
        return fake_engine(load_tokenizer(tokenizer_folder)).loaded

    async with running(build, wait=False) as server:
        server.state.engine.progress.moved_s -= 301
        stuck = await server.get("/health")
        gate.set()

    assert (stuck.status, stuck.json["error"]["code"]) == (503, "loading_stuck")


async def test_a_model_that_cannot_be_loaded_is_told(tokenizer_folder: Path) -> None:
    def build(_: StartupProgress) -> LoadedEngine:
        raise StartupError("ModelNotFound", "there is no model at /x")

    async with running(build, wait=False) as server:
        await server.state.engine.wait_until(EngineState.DEAD)
        startup = (await server.get("/startup")).json

        assert (startup["stage"], startup["message"]) == ("failed", "there is no model at /x")
        assert (await server.get("/health")).status == 503
        assert (await server.post(CHAT, a_chat())).json["error"]["code"] == "engine_dead"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stage", ["waiting", "running"])
async def test_blocks_are_free_after_a_client_went_away(server: Server, stream: bool, stage: str) -> None:
    runner = runner_of(server)
    runner.gate.clear()
    body = a_completion([5] * 100, stream=stream, ignore_eos=True, max_tokens=400)
    request = asyncio.create_task(server.post(COMPLETIONS, body))
    await server.until(lambda: server.state.engine.num_unfinished == 1)
    if stage == "running":
        runner.let_through(2)
        await server.until(lambda: server.state.engine.snapshot.kv_usage > 0)

    request.cancel()
    await server.until(lambda: server.state.engine.num_unfinished == 0, timeout_s=1)
    runner.open()
    await server.until(lambda: server.state.num_active == 0, timeout_s=1)
    await server.until(lambda: is_at_rest(server), timeout_s=1)

    load = (await server.get("/load")).json
    assert (load["running"], load["waiting"], load["kv_usage"], load["pressure"]) == (0, 0, 0, 0)
    snapshot = server.state.engine.snapshot
    assert load["kv_tokens"] == snapshot.num_blocks * snapshot.block_size > 0
    assert load["max_num_seqs"] == snapshot.max_num_seqs > 0
    assert await server.metric("vllm:request_success_total", finished_reason="abort") == 1


async def test_a_full_queue_is_a_429_with_retry_after(tokenizer_folder: Path, where: str) -> None:
    async with fake_server(tokenizer_folder, where=where, seqs=1, max_num_queued_reqs=2) as server:
        runner_of(server).gate.clear()
        body = a_completion(ignore_eos=True)
        tasks = [asyncio.create_task(server.post(COMPLETIONS, body)) for _ in range(3)]
        await server.until(lambda: server.state.engine.num_unfinished == 3)

        refused = await server.post(COMPLETIONS, body)
        runner_of(server).gate.set()
        answers = await asyncio.gather(*tasks)

        assert (
            refused.status,
            refused.headers["Retry-After"],
            refused.json["error"]["code"],
        ) == (429, "1", "queue_full")
        assert [answer.status for answer in answers] == [200] * 3
        assert (await server.post(COMPLETIONS, body)).status == 200
        assert await server.metric("octavo_rejected_requests_total", reason="queue_full") == 1


async def test_a_stuck_engine_is_unhealthy_only_while_work_is_there(tokenizer_folder: Path, where: str) -> None:
    async with fake_server(tokenizer_folder, where=where, stall_timeout=1) as server:
        engine = server.state.engine
        runner_of(server).gate.clear()
        task = asyncio.create_task(server.post(COMPLETIONS, a_completion()))
        await server.until(lambda: engine.num_unfinished == 1)
        healthy_before = (await server.get("/health")).status
        engine._beat_s -= 1.1

        stuck = await server.get("/health")
        runner_of(server).gate.set()
        await task

        assert (healthy_before, stuck.status, stuck.json["error"]["code"]) == (200, 503, "engine_stuck")
        engine._beat_s -= 100
        assert (await server.get("/health")).status == 200


async def test_clients_that_leave_a_stuck_engine_do_not_make_it_look_well(tokenizer_folder: Path) -> None:
    """They time out long before it is known to be stuck, and others come: each must find the clock still running."""
    async with fake_server(tokenizer_folder) as server:
        engine = server.state.engine
        runner = runner_of(server)
        runner.gate.clear()
        for _ in range(2):
            request = asyncio.create_task(server.post(COMPLETIONS, a_completion(ignore_eos=True)))
            # One that left before a step has begun would leave an engine that is well.
            await server.until(lambda: engine.num_unfinished == runner.num_begun == 1)
            engine._beat_s -= 200
            request.cancel()
            await server.until(lambda: engine.num_unfinished == 0)

        stuck = await server.get("/health")
        runner_of(server).open()
        await server.until(lambda: engine._is_idle)
        engine._beat_s -= 1000

        assert (stuck.status, stuck.json["error"]["code"]) == (503, "engine_stuck")
        assert (await server.get("/health")).status == 200


async def test_the_death_of_the_engine_ends_every_request_with_an_error(server: Server) -> None:
    runner = runner_of(server)
    runner.gate.clear()
    long = a_completion(ignore_eos=True, max_tokens=300)
    whole = asyncio.create_task(server.post(COMPLETIONS, long))
    streamed = asyncio.create_task(server.post(COMPLETIONS, {**long, "stream": True}))
    await server.until(lambda: server.state.engine.num_unfinished == 2)
    server.fake.break_engine()  # type: ignore[union-attr]
    runner.gate.set()

    answers = await asyncio.gather(whole, streamed)

    # The step that was under way when the fault came may have ended first.
    assert EngineState.DEAD is await server.state.engine.wait_until(EngineState.DEAD)
    assert (answers[0].status, answers[0].json["error"]["code"]) == (503, "engine_dead")
    assert answers[1].events[-1]["error"]["code"] == "engine_dead"
    assert (await server.get("/health")).status == 503
    assert (await server.get("/ready")).status == 503
    assert server.state.engine.num_unfinished == 0


async def test_an_engine_in_which_every_step_fails_dies_and_says_so(server: Server) -> None:
    runner_of(server).breaks = True

    statuses = [(await server.post(COMPLETIONS, a_completion())).status for _ in range(MAX_FAILED_STEPS + 1)]

    assert statuses[: MAX_FAILED_STEPS - 1] == [500] * (MAX_FAILED_STEPS - 1)
    assert statuses[-1] == 503
    assert EngineState.DEAD is server.state.engine.state


async def test_a_poisoned_request_does_not_hurt_those_beside_it(server: Server) -> None:
    alone = (await server.post(COMPLETIONS, a_completion([9, 8], seed=1))).json["choices"]

    answers = await asyncio.gather(
        server.post(COMPLETIONS, a_completion([9, 8], seed=1)),
        server.post(COMPLETIONS, a_completion([POISON])),
        server.post(COMPLETIONS, a_completion([9, 8], seed=1)),
    )

    assert [answer.status for answer in answers] == [200, 500, 200]
    assert alone == answers[0].json["choices"] == answers[2].json["choices"]


async def test_a_serving_process_whose_engine_dies_ends_with_the_reason(tokenizer_folder: Path) -> None:
    """`serve` raises, from which the command makes an exit status; the client that waited is told before."""
    parts = fake_engine(load_tokenizer(tokenizer_folder))
    parts.break_engine()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    metrics = ServerMetrics("tiny", lambda: engine.snapshot)
    engine = AsyncEngine(EngineThread(lambda _: parts.loaded))
    state = ServerState(
        config=ServerConfig(host="127.0.0.1", port=port), engine=engine, metrics=metrics, model_names=("tiny",)
    )
    serving = asyncio.create_task(serve(state))
    await engine.wait_until(EngineState.READY)

    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}{COMPLETIONS}"
        async with session.post(url, json=a_completion(stream=True)) as response:
            text = await response.text()
    with pytest.raises(EngineDeadError, match="RuntimeError"):
        await serving

    assert '"code": "engine_dead"' in text
    assert text.endswith("data: [DONE]\n\n")


async def test_a_serving_process_whose_engine_stays_stuck_gives_it_up(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread may be inside a kernel for ever, so nobody waits for it."""
    monkeypatch.setattr(AsyncEngine, "watch", partialmethod(AsyncEngine.watch, tick_s=0.001, grace_s=0.005))
    parts, now = fake_engine(load_tokenizer(tokenizer_folder)), [0.0]
    parts.runner.gate.clear()
    engine = AsyncEngine(EngineThread(lambda _: parts.loaded), clock=lambda: now[0])
    state = ServerState(
        config=ServerConfig(host="127.0.0.1", port=0),
        engine=engine,
        metrics=ServerMetrics("tiny", lambda: engine.snapshot),
        model_names=("tiny",),
    )
    serving = asyncio.create_task(serve(state))
    await engine.wait_until(EngineState.READY)
    params = SamplingParams(max_tokens=4)
    stream = engine.submit([Request(request_id="a", prompt_token_ids=(5,), params=params, arrival_s=0.0)])
    now[0] = 301

    with pytest.raises(EngineStuckError, match="no step has ended for more than 300 s"):
        await serving
    parts.runner.open()

    assert [delta.finish_reason for delta in await stream.read()] == [FinishReason.ERROR]


async def test_a_fault_in_the_middle_of_a_stream_is_an_event(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompletionShape, "deltas", lambda *_: 1 / 0)

    answer = await server.post(COMPLETIONS, a_completion(stream=True))

    assert (answer.status, answer.events[-1]["error"]["code"]) == (200, "internal_error")
    assert "division" not in answer.body.decode()
    await server.until(lambda: server.state.engine.num_unfinished == 0, timeout_s=1)


async def test_more_outputs_than_may_ever_wait_are_refused_for_good(tokenizer_folder: Path, where: str) -> None:
    async with fake_server(tokenizer_folder, where=where, seqs=2, max_num_queued_reqs=3) as server:
        refused = await server.post(COMPLETIONS, a_completion(["a", "b"], n=3))

        assert (refused.status, refused.json["error"]["param"]) == (400, "n")
        assert (await server.post(COMPLETIONS, a_completion(n=5))).status == 200


async def test_probes_may_ask_with_head(server: Server) -> None:
    async with server.session.head(server.url + "/health") as response:
        assert response.status == 200


async def test_a_slow_reader_holds_nobody(server: Server) -> None:
    """It reads nothing while others finish, then finds all of its text there."""
    body = a_completion(ignore_eos=True, max_tokens=400, seed=1)
    expected = (await server.post(COMPLETIONS, body)).json["choices"][0]["text"]
    slow = await server.session.post(server.url + COMPLETIONS, json={**body, "stream": True})

    answers = await asyncio.gather(*(server.post(COMPLETIONS, a_completion()) for _ in range(4)))

    events = [json.loads(line[6:]) async for line in slow.content if line.startswith(b"data: {")]
    slow.release()
    assert [answer.status for answer in answers] == [200] * 4
    assert expected == "".join(event["choices"][0]["text"] for event in events)


async def test_draining_refuses_what_is_new_and_finishes_what_runs(server: Server) -> None:
    runner = runner_of(server)
    runner.gate.clear()
    running_one = asyncio.create_task(server.post(COMPLETIONS, a_completion(ignore_eos=True)))
    await server.until(lambda: server.state.engine.num_unfinished == 1)
    server.state.draining = True

    refused = await server.post(CHAT, a_chat())
    ready, health = (await server.get("/ready")).status, (await server.get("/health")).status
    load = (await server.get("/load")).json
    runner.gate.set()

    assert (
        refused.status,
        refused.json["error"]["code"],
        refused.headers["Connection"].lower(),
    ) == (503, "draining", "close")
    assert (ready, health, load["draining"]) == (503, 200, True)
    assert (await running_one).status == 200


async def test_closing_ends_every_stream_with_an_error(tokenizer_folder: Path, where: str) -> None:
    async with fake_server(tokenizer_folder, where=where) as server:
        runner_of(server).gate.clear()
        task = asyncio.create_task(server.post(COMPLETIONS, a_completion(stream=True, ignore_eos=True)))
        await server.until(lambda: server.state.engine.num_unfinished == 1)

        server.state.draining = True
        server.state.engine.fail_all("the server is shutting down")
        answer = await task
        runner_of(server).gate.set()

    assert (
        answer.events[-1]["error"]["message"],
        answer.events[-1]["error"]["code"],
    ) == ("the server is shutting down", "draining")


async def test_half_sent_requests_and_hang_ups_leave_nothing(server: Server) -> None:
    for data in (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"GET /health",
        b"\x00\xff\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        writer.write(data)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        del reader

    assert (await server.post(COMPLETIONS, a_completion())).status == 200
    await server.until(lambda: server.state.num_active == 0, timeout_s=1)


async def test_a_client_that_times_out_is_a_client_that_went_away(server: Server) -> None:
    runner_of(server).gate.clear()
    with pytest.raises(TimeoutError):
        await server.post(COMPLETIONS, a_completion(), timeout=aiohttp.ClientTimeout(total=0.1))

    await server.until(lambda: server.state.engine.num_unfinished == 0, timeout_s=1)
