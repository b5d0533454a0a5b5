"""What a gate asks a pod and Prometheus, against servers that speak as they do."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from octavo_operator.api.types import GateQuery, GoldenPrompt, RolloutGate
from octavo_operator.rollout.gate_report import GateCheck, GateReport
from octavo_operator.rollout.gate_runner import SPEED_ROUNDS, Checker, GateRunner

KEY = ("default", "qwen")
FOUR = GoldenPrompt(prompt="What is 2 + 2?", expect="4", max_tokens=9)


class Pod:
    """A server that says the same to everybody; `troubles` are statuses that it answers first."""

    def __init__(self, says: str = "It is 4.", *, troubles: tuple[int, ...] = (), takes_s: float = 1.0) -> None:
        self.says = says
        self.troubles = list(troubles)
        self.takes_s = takes_s
        self.asked: list[dict[str, Any]] = []
        self.queries: list[str] = []
        self.results: list[Any] = []
        self.now = 0.0

    async def chat(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        if self.troubles:
            return web.json_response({"error": {"message": "no"}}, status=self.troubles.pop(0))
        self.now += self.takes_s
        message = {"role": "assistant", "content": self.says}
        usage = {"completion_tokens": self.asked[-1]["max_tokens"]}
        return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})

    async def query(self, request: web.Request) -> web.Response:
        self.queries.append(request.query["query"])
        result = self.results.pop(0)
        kind = "scalar" if isinstance(result, list) and result and not isinstance(result[0], dict) else "vector"
        return web.json_response({"status": "success", "data": {"resultType": kind, "result": result}})


@asynccontextmanager
async def serving(pod: Pod) -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", pod.chat)
    app.router.add_get("/prometheus/api/v1/query", pod.query)
    runner = web.AppRunner(app)
    await runner.setup()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        await web.SockSite(runner, listener).start()
        try:
            yield listener.getsockname()[1]
        finally:
            await runner.cleanup()


def a_check(*, state: str = "Running", baseline: float = 0.0, **gate: Any) -> GateCheck:
    return GateCheck(
        state=state,
        revision="abc",
        address="127.0.0.1",
        model="qwen",
        gate=RolloutGate(**gate),
        baseline=baseline,
    )


async def report_on(pod: Pod, make: Callable[[int], GateCheck]) -> GateReport:
    async with serving(pod) as port, aiohttp.ClientSession() as session:
        return await Checker(session, make(port), clock=lambda: pod.now, port=port, again_s=0).report()


async def test_golden_prompts_are_asked_without_chance() -> None:
    pod = Pod()

    report = await report_on(pod, lambda _: a_check(prompts=(FOUR, FOUR)))

    assert report.problem == ""
    assert pod.asked[0] == {
        "model": "qwen",
        "messages": [{"role": "user", "content": "What is 2 + 2?"}],
        "max_tokens": 9,
        "temperature": 0,
    }
    assert len(pod.asked) == 2


async def test_wrong_answer_is_quoted() -> None:
    report = await report_on(Pod("It is\n five."), lambda _: a_check(prompts=(FOUR,)))

    assert report.problem == ("prompt 1 of 1, 'What is 2 + 2?': the answer does not contain '4': 'It is five.'")


async def test_server_that_refuses_fails_the_gate_and_one_that_is_busy_is_asked_again() -> None:
    refused = await report_on(Pod(troubles=(400,)), lambda _: a_check(prompts=(FOUR,)))
    busy = Pod(troubles=(503, 429, 500))
    passed = await report_on(busy, lambda _: a_check(prompts=(FOUR,)))

    assert refused.problem.startswith("prompt 1 of 1: the server answers 400")
    assert (passed.problem, len(busy.asked)) == ("", 4)


def completion(tokens: object) -> str:
    return json.dumps({"choices": [{"message": {"content": "4"}}], "usage": {"completion_tokens": tokens}})


@pytest.mark.parametrize(
    "answer",
    [
        '{"choices": []}',
        "[" * 100_000,
        completion("4"),
        completion(10**400),
        '{"choices": [{"message": {}}], "usage": 1}',
    ],
    ids=["empty", "nested", "tokens as text", "tokens without end", "no usage"],
)
async def test_answer_that_is_no_completion_fails_the_gate(answer: str) -> None:
    """By its name and at once, and not by the gate's timeout."""
    pod = Pod()

    async def nonsense(_: web.Request) -> web.Response:
        return web.Response(text=answer, content_type="application/json")

    pod.chat = nonsense  # type: ignore[method-assign]  # another server
    report = await report_on(pod, lambda _: a_check(prompts=(FOUR,)))

    assert "the server's answer is no chat completion" in report.problem


async def test_speed_is_the_best_of_a_few_rounds_of_as_many_tokens() -> None:
    pod = Pod(takes_s=4.0)

    report = await report_on(pod, lambda _: a_check(state="Measuring", min_throughput_ratio="0.9", prompts=(FOUR,)))

    assert report == GateReport(check=report.check, tokens_per_second=16.0)
    assert [asked["max_tokens"] for asked in pod.asked] == [64] * SPEED_ROUNDS
    assert all(asked["ignore_eos"] for asked in pod.asked)


@pytest.mark.parametrize(("baseline", "problem"), [(17.0, ""), (20.0, "16.0 tokens a second are less than")])
async def test_slower_revision_fails(baseline: float, problem: str) -> None:
    pod = Pod(takes_s=4.0)

    report = await report_on(pod, lambda _: a_check(min_throughput_ratio="0.9", baseline=baseline))

    assert report.problem.startswith(problem)
    assert bool(report.problem) is bool(problem)


def query_of(port: int, maximum: str = "0.1") -> GateQuery:
    url = f"http://127.0.0.1:{port}/prometheus/"
    return GateQuery(prometheus=url, expr='errors{revision="$(revision)"}', maximum=maximum)


def vector(*values: str) -> list[dict[str, Any]]:
    return [{"metric": {}, "value": [1.0, value]} for value in values]


@pytest.mark.parametrize(
    ("results", "problem"),
    [
        ([vector("0.1")], ""),
        ([[1.0, "0.05"]], ""),
        ([vector(), vector("NaN"), vector("0.02")], ""),
        ([vector("0", "0.2")], "query: 'errors{revision=\"abc\"}' gives 0.2, more than max 0.1"),
    ],
)
async def test_query_is_asked_until_it_has_a_result(results: list[Any], problem: str) -> None:
    pod = Pod()
    pod.results = list(results)

    report = await report_on(pod, lambda port: a_check(query=query_of(port)))

    assert report.problem == problem
    assert set(pod.queries) == {'errors{revision="abc"}'}
    assert len(pod.queries) == len(results)


async def test_report_is_told_once_and_another_check_begins_anew() -> None:
    pod = Pod()
    done: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    async with serving(pod) as port:
        runner = GateRunner(done.put_nowait, port=port, again_s=0)
        first, second = a_check(prompts=(FOUR,)), a_check(prompts=(FOUR, FOUR))
        runner.want(KEY, first)
        async with running(runner.run()):
            await done.get()
            report = runner.report(KEY)
            assert report is not None
            assert report.check == first
            runner.want(KEY, first)
            assert runner.report(KEY) == report
            runner.want(KEY, second)
            assert runner.report(KEY) is None
            await done.get()
            assert (runner.report(KEY) or report).check == second
            runner.want(KEY, None)

            assert runner.report(KEY) is None
            assert len(pod.asked) == 3


async def test_check_that_is_no_longer_wanted_ends() -> None:
    pod = Pod(troubles=(503,) * 100_000)
    async with serving(pod) as port:
        runner = GateRunner(lambda _: None, port=port, again_s=0)
        async with running(runner.run()):
            runner.want(KEY, a_check(prompts=(FOUR,)))
            while not pod.asked:
                await asyncio.sleep(0)
            runner.want(KEY, None)
            await asyncio.sleep(0.05)
            asked = len(pod.asked)
            await asyncio.sleep(0.05)

            assert len(pod.asked) == asked


@asynccontextmanager
async def running(work: Awaitable[None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
