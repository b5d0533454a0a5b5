"""Load: figures that follow from what was timed, and a server that dies in the middle of it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from octavo_server.bench.client import Target, Timing, read_event, send
from octavo_server.bench.datasets import Ask, Dataset
from octavo_server.bench.load import Level, Round, run_load
from octavo_server.bench.serve import summarize
from octavo_server.bench.slo import keeps, read_slo
from octavo_server.errors import ConfigError
from octavo_testing.server import NAME, fake_server

EVENTS = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n' * 2
END = b'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\ndata: [DONE]\n\n'


def a_timing(**fields: object) -> Timing:
    timing = Timing(start_s=0.0, end_s=1.0, usage={"prompt_tokens": 10, "completion_tokens": 5})
    for now in (0.2, 0.3, 0.5):
        timing.piece(now)
    for name, value in fields.items():
        setattr(timing, name, value)
    return timing


def some_asks(count: int, max_tokens: int = 6) -> list[Ask]:
    return Dataset(prompt_tokens=8, max_tokens=max_tokens).asks(count, seed=0)


def test_figures_follow_from_the_timings() -> None:
    bad = a_timing(error="HTTP 500")
    rounds = [Round(planned=3, timings=[a_timing(), bad], wall_s=2.0), Round(planned=1, timings=[a_timing()], wall_s=1)]

    result = summarize("2 clients", rounds, {"ttft": 500.0, "tpot": 70.0})

    assert (result.counts["requests"], result.counts["failed"], result.counts["not_sent"]) == (3, 1, 1)
    assert (result.counts["errors"], result.counts["input_tokens"], result.counts["output_tokens"]) == (
        ["HTTP 500"], 20, 10,
    )  # fmt: skip
    assert result.measures["output_tokens_per_s"].rounds == [[[2.5]], [[5.0]]]
    assert result.measures["total_tokens_per_s"].rounds == [[[7.5]], [[15.0]]]
    assert result.measures["ttft_ms"].values == [200.0, 200.0]
    assert result.measures["e2e_ms"].percentile(50) == 1000.0
    assert result.measures["itl_ms"].rounds[0] == [pytest.approx([100.0, 200.0])]
    # (0.5 - 0.2) s over the 4 tokens after the first; 75 ms are beyond the limit of 70
    assert result.measures["tpot_ms"].percentile(50) == pytest.approx(75.0)
    assert result.measures["goodput_per_s"].values == [0.0, 0.0]


@pytest.mark.parametrize(
    ("slo", "kept"),
    [
        (["ttft:200"], True),
        (["ttft:199"], False),
        (["tpot:75.1"], True),
        (["tpot:74"], False),
        (["e2e:1000"], True),
        (["e2el:999"], False),
        (["ttft:500", "e2e:999"], False),
    ],
)
def test_a_request_is_good_where_it_keeps_every_limit(slo: list[str], kept: bool) -> None:
    assert keeps(a_timing(), read_slo(slo)) is kept
    assert not keeps(a_timing(error="x"), read_slo(slo))


@pytest.mark.parametrize("pair", ["ttft", "ttft:", "ttft:0", "ttft:nan", "ttft:inf", "ttlt:5", "tpot:-1"])
def test_a_limit_that_is_none_is_told(pair: str) -> None:
    with pytest.raises(ConfigError, match="must be one of ttft:MS"):
        read_slo([pair])


def test_a_stream_is_counted_by_its_usage_else_by_its_pieces() -> None:
    timing = Timing(start_s=0.0)
    for line in (EVENTS + b": a comment\n" + END).splitlines():
        read_event(line, timing)

    assert (timing.pieces, timing.output_tokens, timing.is_complete) == (2, 2, True)
    read_event(b'data: {"choices":[],"usage":{"completion_tokens":9}}', timing)
    assert timing.output_tokens == 9
    read_event(b'data: {"error": {"message": "gone"}}', timing)
    assert "gone" in str(timing.error)


def test_extra_fields_are_merged_and_null_takes_one_out() -> None:
    extra = {"stream_options": None, "ignore_eos": None, "top_k": 5, "temperature": 1}
    body = Target(url="", model="m", extra=extra).body(Ask(content="hi", max_tokens=3))

    assert body == {
        "model": "m", "max_tokens": 3, "temperature": 1, "messages": [{"role": "user", "content": "hi"}],
        "stream": True, "top_k": 5,
    }  # fmt: skip
    messages = [{"role": "system", "content": "x"}]
    assert Target(url="", model="m").body(Ask(content=messages, max_tokens=3))["messages"] == messages
    assert Target(url="", model="m", endpoint="completions").body(Ask(content=[1], max_tokens=3))["prompt"] == [1]


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize(
    "level", [Level(concurrency=3), Level(concurrency=None, rate=500.0), Level(concurrency=2, rate=500.0)]
)
async def test_load_counts_what_the_server_counts(tokenizer_folder: Path, endpoint: str, level: Level) -> None:
    heard: list[tuple[int, int]] = []
    async with fake_server(tokenizer_folder) as server:
        target = Target(url=server.url, model=NAME, endpoint=endpoint)

        made = await run_load(target, some_asks(7), level, warmup=1, on_end=lambda *pair: heard.append(pair))

        assert (len(made.timings), len(made.good), made.planned, made.errors, made.ended) == (6, 6, 6, [], None)
        assert sum(timing.output_tokens for timing in made.good) == 36
        assert await server.metric("vllm:generation_tokens_total") == 42
        assert heard == [(number, 6) for number in range(1, 7)]


@pytest.mark.parametrize("bound", [1, 3])
async def test_no_more_requests_run_than_the_level_says(tokenizer_folder: Path, bound: int) -> None:
    """All are due at once; an answer that ends lets one more begin."""
    open_at_ends: list[int] = []
    async with fake_server(tokenizer_folder) as server:
        made = await run_load(
            Target(url=server.url, model=NAME),
            some_asks(9),
            Level(concurrency=bound, rate=1e6),
            on_end=lambda done, _: open_at_ends.append(server.state.engine.num_accepted - done + 1),
        )

    assert (len(made.good), max(open_at_ends)) == (9, bound)
    # Those that waited for their turn are timed from when they were due, at the beginning.
    starts = [timing.start_s for timing in made.timings]
    assert max(starts) < min(timing.end_s or 0 for timing in made.timings)


async def test_a_request_is_timed_from_when_it_was_due(tokenizer_folder: Path) -> None:
    """Or a server that cannot keep up would look better the later it is asked."""
    async with fake_server(tokenizer_folder) as server:
        due_s = time.perf_counter() - 1000

        timing = await send(server.session, Target(url=server.url, model=NAME), some_asks(1)[0], due_s)

    assert timing.ttft_s is not None
    assert timing.ttft_s > 1000


@asynccontextmanager
async def a_server_that_dies(after: int) -> AsyncIterator[str]:
    """Answers `after` requests, cuts the next one off in the middle and listens no more."""
    served = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(re.findall(rb"Content-Length: (\d+)", head)[0]))
        served += 1
        lives = served <= after
        body = EVENTS + (END if lives else b"")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5000\r\n\r\n" if not lives else
                     b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body))  # fmt: skip
        writer.write(body)
        await writer.drain()
        if not lives:
            server.close()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("level", [Level(concurrency=1), Level(concurrency=1, rate=1000.0)])
async def test_a_server_that_dies_ends_the_load_and_what_was_finished_is_kept(level: Level) -> None:
    async with a_server_that_dies(after=4) as url:
        made = await run_load(Target(url=url, model="m"), some_asks(20), level, warmup=1)

    assert (len(made.good), made.planned) == (3, 20 - 1)
    assert len(made.timings) == 4
    assert re.fullmatch(
        r"3 of 19 requests had finished, 1 failed, 15 were not sent; the server is gone: .*payload.*", made.story
    )


async def test_a_server_that_is_not_there_is_told_at_once() -> None:
    async with a_server_that_dies(after=9) as url:
        pass

    made = await run_load(Target(url=url, model="m"), some_asks(20), Level(concurrency=4), warmup=2)

    assert (made.timings, made.planned) == ([], 18)
    assert "0 of 18 requests had finished, 0 failed, 18 were not sent" in made.story


async def test_a_stream_that_just_ends_is_no_answer() -> None:
    """The connection is closed in order, but nothing said that the answer is whole."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + EVENTS)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        timing = await send(session, Target(url=url, model="m"), some_asks(1)[0])

    assert timing.error == "the stream broke off after 2 pieces"


async def test_what_a_server_refuses_is_counted_and_named_and_the_load_goes_on(tokenizer_folder: Path) -> None:
    async with fake_server(tokenizer_folder) as server:
        made = await run_load(Target(url=server.url, model="other"), some_asks(3), Level(concurrency=1))

    assert (len(made.timings), made.good, made.ended) == (3, [], None)
    assert "HTTP 404" in made.errors[0]
    assert json.loads(made.errors[0].partition(": ")[2])["error"]["code"] == "model_not_found"
