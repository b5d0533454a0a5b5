"""The soak's clients: they send asks, read answers to the end or leave in the middle, and write down what they know."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp

from benchmarks.ledger import Ledger
from benchmarks.traffic import EMBEDDINGS, KINDS, OPTIONAL, RESPONSES, Ask, Kind, to_abort

_REASONS = {"tool_calls": "stop", "completed": "stop", "incomplete": "length"}
"""What a client is told → what the server counts."""


@dataclass(slots=True, kw_only=True)
class Clients:
    """Closed-loop clients of one server, with a moment of thought between two requests."""

    session: aiohttp.ClientSession
    url: str
    model: str
    rng: Random
    think_s: float
    abort_tokens: int
    """Output that an aborted request asks for."""
    ledger: Ledger = field(default_factory=Ledger)
    problems: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, tuple[int, Kind]] = field(default_factory=lambda: dict(KINDS))

    async def probe(self) -> list[str]:
        """Adds the optional kinds that the server serves; names those that it does not."""
        missing = []
        for name, (weight, kind) in OPTIONAL.items():
            ask = kind(self.rng)
            async with self.session.post(self.url + ask.path, json=self._body(ask)) as response:
                await response.read()
            if response.status == 200:
                self.kinds[name] = (weight, kind)
            else:
                missing.append(name)
        return missing

    async def run(self, num_clients: int, seconds: float, abort_share: float) -> Ledger:
        """One phase; its ledger, once every client is through."""
        self.ledger = Ledger()
        end = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(*(self._client(end, abort_share) for _ in range(num_clients)))
        return self.ledger

    async def _client(self, end: float, abort_share: float) -> None:
        names = list(self.kinds)
        weights = [self.kinds[name][0] for name in names]
        while asyncio.get_running_loop().time() < end:
            try:
                if self.rng.random() < abort_share:
                    await self._abort()
                else:
                    await self._ask(self.rng.choices(names, weights)[0])
            except (aiohttp.ClientError, OSError, ValueError, KeyError, TimeoutError) as error:
                self.problems[f"{type(error).__name__}: {error}"[:200]] += 1
            await asyncio.sleep(self.rng.expovariate(1 / self.think_s))

    async def _ask(self, name: str) -> None:
        ask = self.kinds[name][1](self.rng)
        self.sent[name + (" streamed" if ask.is_stream else "")] += 1
        async with self.session.post(self.url + ask.path, json=self._body(ask)) as response:
            if response.status != 200:
                self._refused(ask, response.status, await response.text())
            elif ask.is_stream:
                _take(ask, [event async for event in _events(response)], self.ledger)
            else:
                _take(ask, [await response.json()], self.ledger)

    def _refused(self, ask: Ask, status: int, text: str) -> None:
        self.ledger.rejected += 1
        if not ask.must_fail or status >= 500:
            self.problems[f"{ask.path}: HTTP {status}: {text}"[:300]] += 1
        elif set(json.loads(text)["error"]) != {"message", "type", "param", "code"}:
            self.problems[f"{ask.path}: not the shape of an error: {text}"[:300]] += 1

    async def _abort(self) -> None:
        ask = to_abort(self.rng, self.abort_tokens)
        if ask.is_stream:
            self.sent["left a stream"] += 1
            await self._leave_stream(ask)
        elif self.rng.random() < 0.2:
            self.sent["left within the body"] += 1
            await self._leave_body(ask)
        else:
            self.sent["left before the answer"] += 1
            self.ledger.unsure_requests += 1
            self.ledger.asked_tokens += self.abort_tokens
            await self._leave_unanswered(ask)

    async def _leave_stream(self, ask: Ask) -> None:
        n, prompt = ask.body["n"], ask.body["prompt"]
        num_events, received, ended = self.rng.randrange(12), 0, Counter[str]()
        async with self.session.post(self.url + ask.path, json=self._body(ask)) as response:
            if response.status != 200:
                self._refused(ask, response.status, await response.text())
                return
            if num_events:
                async for event in _events(response):
                    for choice in event["choices"]:
                        received += len(choice["token_ids"])
                        ended[choice["finish_reason"]] += choice["finish_reason"] is not None
                    num_events -= 1
                    if num_events == 0:
                        break
            response.close()
        self.ledger.certain_requests += 1
        self.ledger.certain_prompt_tokens += len(prompt)
        self.ledger.certain_outputs += n - ended.total()
        self.ledger.outcomes.update({reason: count for reason, count in ended.items() if count})
        self.ledger.received_tokens += received
        self.ledger.asked_tokens += n * self.abort_tokens

    async def _leave_unanswered(self, ask: Ask) -> None:
        try:
            async with (
                asyncio.timeout(self.rng.random() * 0.1),
                self.session.post(self.url + ask.path, json=self._body(ask)) as response,
            ):
                await response.read()
        except TimeoutError:
            return
        self.problems["a long request ended before its client left; ask for more with --abort-tokens"] += 1

    async def _leave_body(self, ask: Ask) -> None:
        host, port = self.url.removeprefix("http://").split(":")
        body = json.dumps(self._body(ask)).encode()
        head = f"POST {ask.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + body[: self.rng.randrange(len(body))])
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    def _body(self, ask: Ask) -> dict[str, Any]:
        return {"model": self.model, **ask.body}


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The JSON of a stream's events; raises where it ends with an error."""
    async for line in response.content:
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        event = json.loads(line[6:])
        if event.get("error"):
            raise ValueError(f"a stream ended with {event['error']}")
        yield event


def _take(ask: Ask, events: list[dict[str, Any]], ledger: Ledger) -> None:
    """Writes down an answer that was read to its end; one that is not streamed is its only event."""
    last = events[-1]
    if ask.path == EMBEDDINGS:
        outcomes = Counter({"stop": len(last["data"])})
        given, made = last["usage"]["prompt_tokens"], 0
    elif ask.path == RESPONSES:
        answer = last.get("response", last)
        outcomes = Counter([_REASONS[answer["status"]]])
        given, made = answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]
    else:
        ends = [choice["finish_reason"] for event in events for choice in event["choices"]]
        outcomes = Counter(_REASONS.get(end, end) for end in ends if end is not None)
        given, made = last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]
    expected = ask.num_prompts * ask.body.get("n", 1)
    if outcomes.total() != expected:
        raise ValueError(f"{ask.path} ended {outcomes.total()} outputs of {expected}")
    ledger.requests += ask.num_prompts
    ledger.prompt_tokens += given
    ledger.output_tokens += made
    ledger.outcomes += outcomes
