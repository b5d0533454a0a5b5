"""The engine in its own process: same numbers, and an end for everybody whatever becomes of it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from octavo_server.config import EngineConfig
from octavo_server.engine.admission import Limits
from octavo_server.engine.async_engine import AsyncEngine, EngineHost, EngineState
from octavo_server.engine.engine import OutputDelta
from octavo_server.engine.engine_process import EngineProcess
from octavo_server.engine.frames import FrameReader, encode_frame
from octavo_server.engine.messages import Abort, Died, Progressed, Ready, Stepped, Stop
from octavo_server.engine.outputs import SampledToken
from octavo_server.engine.placement import make_host
from octavo_server.engine.records import EngineRecords
from octavo_server.engine.request import FinishReason, Request, SamplingParams
from octavo_server.engine.request_stream import RequestStream
from octavo_server.engine.worker import SocketChannel
from octavo_server.errors import EngineStuckError, InvalidRequestError, StartupError
from octavo_server.machine import may_have_gpu
from octavo_server.metrics import EngineSnapshot
from octavo_server.structured_output.params import StructuredOutputsParams
from octavo_testing.remote_engine import RemoteEngine, remote_engine


def a_request(name: str = "a", prompt: tuple[int, ...] = (5, 6, 7), **params: Any) -> Request:
    sampling = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "max_tokens": 8, **params})
    return Request(request_id=name, prompt_token_ids=prompt, params=sampling, arrival_s=0.0)


async def collect(stream: RequestStream) -> list[OutputDelta]:
    found: list[OutputDelta] = []
    while deltas := await stream.read():
        found += deltas
    return found


@asynccontextmanager
async def running(host: EngineHost, **settings: Any) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(host, **settings)
    engine.start()
    try:
        assert await engine.wait_until(EngineState.READY, EngineState.DEAD) is EngineState.READY, engine.failure
        yield engine
    finally:
        assert await engine.aclose()


@pytest.fixture
def remote(tokenizer_folder: Path) -> Any:
    with remote_engine(tokenizer_folder) as made:
        yield made


def has_ended(pid: int) -> bool:
    """Ended and collected: our child's number means nobody any more."""
    return not Path(f"/proc/{pid}").exists()


async def answers(config: EngineConfig, where: Any, prompts: list[tuple[int, ...]]) -> list[list[Any]]:
    """Of each prompt its tokens with all that was said of them, as one list a prompt."""
    async with running(make_host(config, where=where, log_level="warning")) as engine:
        requests = [
            a_request(str(number), prompt, max_tokens=24, logprobs=5, prompt_logprobs=3)
            for number, prompt in enumerate(prompts)
        ]
        # One after the other: among others a sum may be rounded otherwise.
        collected = [await collect(engine.submit([request])) for request in requests]
    return [
        [[token for delta in deltas for token in delta.tokens], [item for d in deltas for item in d.prompt_logprobs]]
        for deltas in collected
    ]


async def test_apart_gives_the_same_tokens_and_log_probabilities_to_the_last_bit(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    # As many threads here as there, whatever ran before: a sum in other parts is rounded otherwise.
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = EngineConfig(model=str(tiny_model), num_gpu_blocks_override=200)
    prompts = [(5, 6, 7), tuple(range(40, 100)), (9,) * 33]

    here, apart = await answers(config, "in", prompts), await answers(config, "out", prompts)

    assert [(24, len(prompt) - 1) for prompt in prompts] == [(len(tokens), len(given)) for tokens, given in here]
    assert here == apart


async def test_apart_an_output_follows_its_grammar(tiny_model: Path) -> None:
    config = EngineConfig(model=str(tiny_model), num_gpu_blocks_override=200)
    async with running(make_host(config, where="out", log_level="warning")) as engine:
        assert engine.loaded is not None
        grammar = engine.loaded.grammars.compile(StructuredOutputsParams(choice=("yes", "no way")))
        deltas = await collect(engine.submit([replace(a_request(), grammar=grammar)]))

    assert "".join(delta.text for delta in deltas) in ("yes", "no way")
    assert deltas[-1].finish_reason is FinishReason.STOP


@pytest.mark.model
async def test_apart_the_real_model_in_int4_says_the_same(smollm2_path: Path) -> None:
    """Kernels that were compiled just now round otherwise than the same from the cache, by some hundredths; so tokens
    are compared up to the first that was a close call."""
    config = EngineConfig(model=str(smollm2_path), num_gpu_blocks_override=200, quantization="int4")
    prompts = [(504, 314, 31), tuple(range(1000, 1040))]
    num_compared = 0

    here, apart = await answers(config, "in", prompts), await answers(config, "out", prompts)

    for (tokens, _), (others, _) in zip(here, apart, strict=True):
        for token, other in zip(tokens, others, strict=True):
            best, second = token.top_logprobs[:2]
            if best.logprob - second.logprob < 0.2:
                break
            assert token.token_id == other.token_id
            assert token.logprob.logprob == pytest.approx(other.logprob.logprob, abs=0.2)
            num_compared += 1
    assert num_compared > 4


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGSEGV, "SIGSEGV"), (None, "with status 7")]
)
async def test_when_the_process_ends_every_request_does_and_the_reason_is_known(
    remote: RemoteEngine, number: int | None, words: str
) -> None:
    async with running(remote.host) as engine:
        remote.runner.gate.clear()
        streams = [engine.submit([a_request("a", n=2), a_request("b")]), engine.submit([a_request("c")])]
        pid = remote.host.pid
        assert pid is not None
        if number is None:
            remote.tell("exit")
        else:
            os.kill(pid, number)

        ended = [delta for stream in streams for delta in await collect(stream)]

        assert sorted((d.request_id, d.index) for d in ended) == [("a", 0), ("a", 1), ("b", 0), ("c", 0)]
        assert {FinishReason.ERROR} == {delta.finish_reason for delta in ended}
        assert engine.state is EngineState.DEAD
        assert words in str(engine.failure)
        assert not engine.is_healthy
    assert has_ended(pid)


async def test_a_process_that_hangs_is_unhealthy_then_given_up_and_leaves_nothing(remote: RemoteEngine) -> None:
    now = [0.0]
    async with running(remote.host, clock=lambda: now[0], stall_timeout_s=10) as engine:
        pid = remote.host.pid
        assert pid is not None
        watching = asyncio.create_task(engine.watch(tick_s=0.001, grace_s=0.005))
        os.kill(pid, signal.SIGSTOP)
        stream = engine.submit([a_request()])
        assert engine.is_healthy
        now[0] = 11

        assert not engine.is_healthy
        (last,) = await collect(stream)
        await watching
        assert last.finish_reason is FinishReason.ERROR
        assert isinstance(engine.failure, EngineStuckError)
        await engine.aclose(at_once=True)
    assert has_ended(pid)


async def test_a_short_stall_is_forgiven(remote: RemoteEngine) -> None:
    now = [0.0]
    async with running(remote.host, clock=lambda: now[0], stall_timeout_s=10) as engine:
        watching = asyncio.create_task(engine.watch(tick_s=0.001, grace_s=1000))
        remote.runner.gate.clear()
        stream = engine.submit([a_request()])
        now[0] = 11
        assert not engine.is_healthy
        remote.runner.open()
        await collect(stream)

        assert engine.is_healthy
        assert not watching.done()
        watching.cancel()


async def test_stopping_does_not_wait_for_a_step_that_hangs(remote: RemoteEngine) -> None:
    engine = AsyncEngine(remote.host)
    engine.start()
    await engine.wait_until(EngineState.READY)
    pid = remote.host.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    stream = engine.submit([a_request()])

    assert await engine.aclose(at_once=True)

    assert [delta.error for delta in await collect(stream)] == ["the server ended"]
    assert has_ended(pid)


async def test_a_value_that_cannot_cross_is_that_requests_fault_alone(remote: RemoteEngine) -> None:
    async with running(remote.host) as engine:
        with pytest.raises(InvalidRequestError):
            engine.submit([a_request("good"), a_request("bad", stop=("\ud800",))])

        assert engine.num_unfinished == 0
        assert (await collect(engine.submit([a_request()])))[-1].finish_reason is FinishReason.LENGTH


async def test_what_cannot_be_loaded_there_is_told_here(tmp_path: Path) -> None:
    engine = AsyncEngine(EngineProcess(EngineConfig(model=str(tmp_path)), log_level="warning"))
    engine.start()
    await engine.wait_until(EngineState.DEAD)
    await engine.aclose()

    assert isinstance(engine.failure, StartupError)
    assert engine.failure.reason == "ModelNotFound"


async def test_a_tokenizer_that_cannot_be_loaded_here_ends_the_start(
    remote: RemoteEngine, tokenizer_folder: Path
) -> None:
    engine = AsyncEngine(remote.host)
    engine._host._config = EngineConfig(model="x", chat_template="/nowhere")  # type: ignore[attr-defined]
    engine.start()
    await engine.wait_until(EngineState.DEAD)
    await engine.aclose()

    assert "--chat-template" in str(engine.failure)


async def test_an_interpreter_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    engine = AsyncEngine(EngineProcess(EngineConfig(model="x")))
    engine.start()
    await engine.wait_until(EngineState.DEAD)
    await engine.aclose()

    assert "cannot be started" in str(engine.failure)


def test_auto_is_apart_only_where_there_may_be_a_gpu(tmp_path: Path) -> None:
    none = tmp_path / "none"
    none.mkdir()
    nvidia = tmp_path / "nvidia"
    nvidia.mkdir()
    (nvidia / "nvidia3").touch()

    assert not may_have_gpu("auto", none)
    assert may_have_gpu("auto", nvidia)
    assert not may_have_gpu("cpu", nvidia)
    assert may_have_gpu("cuda", none)


# The engine's end of the socket, without a process around it.


def a_step(number: int) -> Stepped:
    delta = OutputDelta(request_id="a", index=0, text=f"{number} ", tokens=(SampledToken(token_id=number),))
    records = EngineRecords(num_output_tokens=1, token_gaps_s=[0.5])
    return Stepped(
        deltas=[delta],
        snapshot=EngineSnapshot(num_running=number),
        num_taken=number,
        num_commands=number,
        records=records,
    )


def test_a_parent_that_does_not_read_holds_no_step_up_and_loses_nothing() -> None:
    ours, theirs = socket.socketpair()
    count = 20_000
    with ours, theirs:
        channel, reader = SocketChannel(theirs), FrameReader()
        for number in range(count):
            channel.post(a_step(number))
        waiting = len(channel._events)
        found: list[Stepped] = []
        ours.setblocking(False)
        while channel._has_unsent or not found:
            found += reader.feed(ours.recv(2**20))
            channel.receive(wait=False)
        ours.setblocking(True)
        theirs.close()
        while data := ours.recv(2**20):
            found += reader.feed(data)

    assert waiting == 1
    assert list(range(count)) == [token.token_id for step in found for d in step.deltas for token in d.tokens]
    assert "".join(f"{number} " for number in range(count)) == "".join(d.text for step in found for d in step.deltas)
    assert count == sum(step.records.num_output_tokens for step in found)
    assert count == sum(len(step.records.token_gaps_s) for step in found)
    assert (found[-1].snapshot.num_running, found[-1].num_taken) == (count - 1, count - 1)


def test_commands_come_in_order_and_a_closed_socket_is_a_stop() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        channel = SocketChannel(theirs)
        assert channel.receive(wait=False) == []
        ours.sendall(b"".join(encode_frame(Abort(request_id=name)) for name in "abc"))
        first = channel.receive(wait=True)
        ours.close()

        assert [Abort(request_id=name) for name in "abc"] == first
        assert channel.receive(wait=True) == [Stop()]
        assert channel.receive(wait=False) == [Stop()]
        channel.post(a_step(1))
        channel.flush(timeout_s=0)


def test_only_the_newest_progress_waits_and_events_leave_in_order() -> None:
    ours, theirs = socket.socketpair()
    told = Progressed(stage="starting", bytes=0, total_bytes=0, message="", stage_seconds={}, location="")
    ready = Ready(limits=Limits(max_sequence_tokens=1, vocab_size=1), snapshot=EngineSnapshot())
    with ours, theirs:
        channel, reader = SocketChannel(theirs), FrameReader()
        # More than the socket holds, so that what follows waits.
        channel.post(Died(message="x" * 2**22))
        for event in (told, told, ready, told, told, a_step(1), a_step(2), told):
            channel.post(event)
        assert [Progressed, Ready, Progressed, Stepped, Progressed] == [type(event) for event in channel._events]
        found: list[object] = []
        while len(found) < 6:
            found += reader.feed(ours.recv(2**20))
            channel.receive(wait=False)

    assert [Died, Progressed, Ready, Progressed, Stepped, Progressed] == [type(event) for event in found]
