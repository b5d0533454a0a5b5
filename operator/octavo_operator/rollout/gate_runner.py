"""Carries out the checks of gates: asks pods and Prometheus in the background, one check at a time for each resource.

Never decides what a report means. A check goes on until it has a report or is no longer wanted: how long that may take
is the gate's `timeout`, which `rollout.gate` watches over.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlencode

import aiohttp

from octavo_operator.api.types import GateQuery, GoldenPrompt
from octavo_operator.autoscaling.pod_http import MAX_ANSWER_BYTES, PodAnswerError, count, get_object, pod_url
from octavo_operator.desired.engine_args import SERVER_PORT
from octavo_operator.object_cache import ResourceKey
from octavo_operator.rollout.gate import MEASURING
from octavo_operator.rollout.gate_report import GateCheck, GateReport

logger = logging.getLogger(__name__)

T = TypeVar("T")

AGAIN_S = 3.0
CONNECT_S = 5.0
READ_S = 120.0
SPEED_ROUNDS = 3
SPEED_PROMPT = "Write a long story about a lighthouse keeper."
SPEED_TOKENS = 64
MAX_QUOTE = 200


class NotYetError(Exception):
    """There is no answer now, but there may be one later."""


class GateRunner:
    """Owns the checks under way and the last report of each resource."""

    def __init__(
        self,
        enqueue: Callable[[ResourceKey], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        port: int = SERVER_PORT,
        again_s: float = AGAIN_S,
    ) -> None:
        self._enqueue = enqueue
        self._clock = clock
        self._port = port
        self._again_s = again_s
        self._wanted: dict[ResourceKey, GateCheck] = {}
        self._reports: dict[ResourceKey, GateReport] = {}
        self._tasks: dict[ResourceKey, asyncio.Task[None]] = {}
        self._session: aiohttp.ClientSession | None = None

    def want(self, key: ResourceKey, check: GateCheck | None) -> None:
        """From now on this check and no other; one that is under way or has its report goes on counting."""
        if check == self._wanted.get(key):
            return
        self._reports.pop(key, None)
        if (task := self._tasks.pop(key, None)) is not None:
            task.cancel()
        if check is None:
            del self._wanted[key]
            return
        self._wanted[key] = check
        if self._session is not None:
            self._begin(key, check, self._session)

    def report(self, key: ResourceKey) -> GateReport | None:
        return self._reports.get(key)

    async def run(self) -> None:
        """Until cancelled; the checks end with it."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
        async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:
            self._session = session
            for key, check in self._wanted.items():
                self._begin(key, check, session)
            try:
                await asyncio.Event().wait()
            finally:
                self._session = None
                tasks = list(self._tasks.values())
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, key: ResourceKey, check: GateCheck, session: aiohttp.ClientSession) -> None:
        self._tasks[key] = asyncio.create_task(self._carry_out(key, check, session), name=f"gate {'/'.join(key)}")

    async def _carry_out(self, key: ResourceKey, check: GateCheck, session: aiohttp.ClientSession) -> None:
        checker = Checker(session, check, clock=self._clock, port=self._port, again_s=self._again_s)
        self._reports[key] = report = await checker.report()
        said = {"resource": "/".join(key), "revision": check.revision, "state": check.state}
        logger.info("a gate was checked", extra={**said, "problem": report.problem})
        self._enqueue(key)


class Checker:
    """One check: the golden prompts, then the speed, then the query; the first that fails is the report."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        check: GateCheck,
        *,
        clock: Callable[[], float],
        port: int,
        again_s: float,
    ) -> None:
        self._session = session
        self._check = check
        self._clock = clock
        self._url = pod_url(check.address, port, "/v1/chat/completions")
        self._again_s = again_s

    async def report(self) -> GateReport:
        gate, problem, speed = self._check.gate, "", 0.0
        if self._check.state != MEASURING:
            problem = await self._prompts(gate.prompts)
        if not problem and gate.min_throughput_ratio and (self._check.state == MEASURING or self._check.baseline):
            speed = await self._speed()
            problem = self._judge_speed(speed)
        if not problem and gate.query is not None and self._check.state != MEASURING:
            problem = await self._query(gate.query)
        return GateReport(check=self._check, problem=problem, tokens_per_second=speed)

    async def _prompts(self, prompts: tuple[GoldenPrompt, ...]) -> str:
        for number, golden in enumerate(prompts, start=1):
            try:
                answer = await self._insist(partial(self._ask, golden.prompt, golden.max_tokens))
            except PodAnswerError as error:
                return f"prompt {number} of {len(prompts)}: {error}"
            text = str(answer["choices"][0]["message"].get("content") or "")
            if golden.expect not in text:
                return (
                    f"prompt {number} of {len(prompts)}, {_quote(golden.prompt)}: the answer does not contain "
                    f"{_quote(golden.expect)}: {_quote(text)}"
                )
        return ""

    async def _speed(self) -> float:
        """Tokens a second of one stream; the best of a few rounds, so that a moment of other work does not count."""
        best = 0.0
        for _ in range(SPEED_ROUNDS):
            began = self._clock()
            try:
                answer = await self._insist(lambda: self._ask(SPEED_PROMPT, SPEED_TOKENS, ignore_eos=True))
            except PodAnswerError:
                return 0.0
            best = max(best, answer["usage"]["completion_tokens"] / max(self._clock() - began, 1e-6))
        return best

    def _judge_speed(self, speed: float) -> str:
        ratio, baseline = float(self._check.gate.min_throughput_ratio), self._check.baseline
        if self._check.state == MEASURING or speed >= ratio * baseline:
            return ""
        return (
            f"{speed:.1f} tokens a second are less than minThroughputRatio {ratio:g} of the {baseline:.1f} of the "
            "revision before"
        )

    async def _query(self, query: GateQuery) -> str:
        expr = query.expr.replace("$(revision)", self._check.revision)
        url = f"{query.prometheus.rstrip('/')}/api/v1/query?{urlencode({'query': expr})}"
        try:
            value = await self._insist(lambda: self._value(url))
        except PodAnswerError as error:
            return f"query: {error}"
        if value > float(query.maximum):
            return f"query: {_quote(expr)} gives {value:g}, more than max {query.maximum}"
        return ""

    async def _value(self, url: str) -> float:
        """The largest value of the result; raises NotYetError where Prometheus has none yet or does not answer."""
        try:
            answer = await get_object(self._session, url)
            data = answer["data"]
            pairs = [data["result"]] if data["resultType"] == "scalar" else [each["value"] for each in data["result"]]
            values = [float(value) for _, value in pairs]
        except (PodAnswerError, KeyError, TypeError, ValueError) as error:
            raise NotYetError(str(error)) from error
        known = [value for value in values if not math.isnan(value)]
        if not known:
            raise NotYetError("the query has no result")
        return max(known)

    async def _ask(self, prompt: str, max_tokens: int, **more: Any) -> dict[str, Any]:
        """A chat completion of the pod itself.

        Raises:
            PodAnswerError: it refuses, and would refuse again.
            NotYetError: it does not answer now.
        """
        body = {
            "model": self._check.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            **more,
        }
        try:
            async with self._session.post(self._url, json=body, allow_redirects=False) as response:
                data, status = await _read(response), response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NotYetError(str(error) or type(error).__name__) from error
        if status == 429 or status >= 500:
            raise NotYetError(f"status {status}")
        if status != 200:
            raise PodAnswerError(f"the server answers {status}: {_quote(data.decode(errors='replace'))}")
        try:
            answer: dict[str, Any] = json.loads(data)
            answer["choices"][0]["message"].get("content")
            count(answer["usage"], "completion_tokens")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, PodAnswerError) as error:
            raise PodAnswerError(
                f"the server's answer is no chat completion: {_quote(data.decode(errors='replace'))}"
            ) from error
        return answer

    async def _insist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await attempt()
            except NotYetError as error:
                logger.debug("a gate's check is tried again", extra={"why": str(error)})
                await asyncio.sleep(self._again_s)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise PodAnswerError(f"the server answers more than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def _quote(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= MAX_QUOTE else f"{line[: MAX_QUOTE - 1]}…")
