"""Sends streamed requests to an OpenAI-compatible server and times what comes back.

Closed loop: `concurrency` clients, each sends its next request when its last one has ended. Open loop: a Poisson process
of `rate` requests a second, whatever the server does. Time to first token is from sending to the first piece of text;
inter-token latency is the gap between two pieces. Tokens are counted as the stream's usage says, else one a piece.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp

from octavo_server.bench.stats import Quantiles, quantiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What each request looks like."""

    url: str
    model: str
    endpoint: str = "chat"
    """"chat" or "completions"."""
    max_tokens: int = 128
    temperature: float = 0.0
    ignore_eos: bool = True
    api_key: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    timeout_s: float = 900.0

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.endpoint == "chat" else "/v1/completions"

    def body(self, prompt: str | list[int]) -> dict[str, Any]:
        """The request for one prompt."""
        content = {"messages": [{"role": "user", "content": prompt}]} if self.endpoint == "chat" else {"prompt": prompt}
        options = {"stream": True, "stream_options": {"include_usage": True}}
        eos = {"ignore_eos": True} if self.ignore_eos else {}
        return {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            **content,
            **options,
            **eos,
            **self.extra,
        }


@dataclass(slots=True, kw_only=True)
class Timing:
    """One request, as its client saw it; times in seconds."""

    start_s: float
    first_s: float | None = None
    last_s: float | None = None
    end_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    pieces: int = 0
    usage: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def output_tokens(self) -> int:
        return int(self.usage.get("completion_tokens") or self.pieces)

    def piece(self, now: float) -> None:
        """A piece of text arrived."""
        self.pieces += 1
        if self.last_s is None:
            self.first_s = now
        else:
            self.gaps_s.append(now - self.last_s)
        self.last_s = now


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What one level of load gave."""

    concurrency: int
    rate: float
    requests: int
    failed: int
    errors: tuple[str, ...]
    wall_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    output_tokens_per_s: float
    total_tokens_per_s: float
    requests_per_s: float
    ttft: Quantiles
    itl: Quantiles
    tpot: Quantiles
    e2e: Quantiles

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


async def run_load(
    target: Target,
    prompts: Sequence[str | list[int]],
    *,
    concurrency: int,
    rate: float = 0.0,
    warmup: int = 0,
    seed: int = 0,
) -> LoadResult:
    """Sends `prompts` (the first `warmup` of them alone and untimed) and sums up."""
    timeout = aiohttp.ClientTimeout(total=target.timeout_s)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, read_bufsize=2**20) as session:
        for prompt in prompts[:warmup]:
            await _send(session, target, prompt)
        timed = prompts[warmup:]
        started = time.perf_counter()
        if rate > 0:
            timings = await _open_loop(session, target, timed, rate, seed)
        else:
            timings = await _closed_loop(session, target, timed, concurrency)
        return summarize(timings, time.perf_counter() - started, concurrency=concurrency, rate=rate)


def summarize(timings: Sequence[Timing], wall_s: float, *, concurrency: int, rate: float) -> LoadResult:
    """Sums and quantiles of the requests that succeeded."""
    good = [timing for timing in timings if timing.error is None and timing.output_tokens > 0]
    output = sum(timing.output_tokens for timing in good)
    given = sum(int(timing.usage.get("prompt_tokens") or 0) for timing in good)
    cached = sum(int((timing.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0) for timing in good)
    return LoadResult(
        concurrency=concurrency,
        rate=rate,
        requests=len(timings),
        failed=len(timings) - len(good),
        errors=tuple(sorted({timing.error for timing in timings if timing.error}))[:3],
        wall_s=round(wall_s, 3),
        input_tokens=given,
        output_tokens=output,
        cached_tokens=cached,
        output_tokens_per_s=round(output / wall_s, 2),
        total_tokens_per_s=round((output + given) / wall_s, 2),
        requests_per_s=round(len(good) / wall_s, 3),
        ttft=quantiles([timing.first_s - timing.start_s for timing in good if timing.first_s is not None]),
        itl=quantiles([gap for timing in good for gap in timing.gaps_s]),
        tpot=quantiles([value for timing in good if (value := _tpot(timing)) is not None]),
        e2e=quantiles([timing.end_s - timing.start_s for timing in good if timing.end_s is not None]),
    )


def _tpot(timing: Timing) -> float | None:
    if timing.first_s is None or timing.last_s is None or timing.output_tokens < 2:
        return None
    return (timing.last_s - timing.first_s) / (timing.output_tokens - 1)


async def _closed_loop(
    session: aiohttp.ClientSession, target: Target, prompts: Sequence[str | list[int]], concurrency: int
) -> list[Timing]:
    timings: list[Timing] = []
    waiting: Iterator[str | list[int]] = iter(prompts)

    async def client() -> None:
        for prompt in waiting:
            timings.append(await _send(session, target, prompt))

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return timings


async def _open_loop(
    session: aiohttp.ClientSession, target: Target, prompts: Sequence[str | list[int]], rate: float, seed: int
) -> list[Timing]:
    rng, due, started = random.Random(seed), 0.0, time.perf_counter()
    tasks = []
    for prompt in prompts:
        await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
        tasks.append(asyncio.create_task(_send(session, target, prompt)))
        due += rng.expovariate(rate)
    return list(await asyncio.gather(*tasks))


async def _send(session: aiohttp.ClientSession, target: Target, prompt: str | list[int]) -> Timing:
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    timing = Timing(start_s=time.perf_counter())
    try:
        async with session.post(target.url + target.path, json=target.body(prompt), headers=headers) as response:
            if response.status != 200:
                timing.error = f"HTTP {response.status}: {(await response.text())[:200]}"
                return timing
            async for line in response.content:
                _read_event(line, timing)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        timing.error = repr(error)[:200]
    timing.end_s = time.perf_counter()
    return timing


def _read_event(line: bytes, timing: Timing) -> None:
    if not line.startswith(b"data:") or line.startswith(b"data: [DONE]"):
        return
    now = time.perf_counter()
    event = json.loads(line[5:])
    if event.get("error"):
        timing.error = str(event["error"])[:200]
        return
    timing.usage = event.get("usage") or timing.usage
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or choice
        if delta.get("content") or delta.get("text") or delta.get("reasoning") or delta.get("reasoning_content"):
            timing.piece(now)
