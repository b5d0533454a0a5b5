"""One streamed request to an OpenAI-compatible server, and when its parts came.

Time to first token is from when the request was due to the first piece of text; inter-token latency is the gap between
two pieces. Tokens are counted as the stream's usage says, else one a piece.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp

if TYPE_CHECKING:
    from octavo_server.bench.datasets import Ask

_PROBE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server, and what all requests to it have in common."""

    url: str
    model: str
    endpoint: str = "chat"
    """"chat" or "completions"."""
    temperature: float = 0.0
    ignore_eos: bool = True
    api_key: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    """Merged into each body; null takes a field out, for servers that refuse it."""
    timeout_s: float = 900.0

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.endpoint == "chat" else "/v1/completions"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def body(self, ask: Ask) -> dict[str, Any]:
        """The request, streamed."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": ask.max_tokens,
            "temperature": self.temperature,
            **self._content(ask),
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if self.ignore_eos else {}),
        }
        return {name: value for name, value in {**body, **self.extra}.items() if value is not None}

    def _content(self, ask: Ask) -> dict[str, Any]:
        if self.endpoint == "completions":
            return {"prompt": ask.content}
        is_chat = isinstance(ask.content, list)
        return {"messages": ask.content if is_chat else [{"role": "user", "content": ask.content}]}


@dataclass(slots=True, kw_only=True)
class Timing:
    """One request, as its client saw it; times in seconds of one clock."""

    start_s: float
    first_s: float | None = None
    last_s: float | None = None
    end_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    pieces: int = 0
    usage: dict[str, Any] = field(default_factory=dict)
    is_complete: bool = False
    """The stream said that it has ended."""
    error: str | None = None
    is_cut_off: bool = False
    """The error is the connection's, not an answer's."""

    @property
    def is_good(self) -> bool:
        return self.error is None and self.output_tokens > 0

    @property
    def output_tokens(self) -> int:
        return int(self.usage.get("completion_tokens") or self.pieces)

    @property
    def prompt_tokens(self) -> int:
        return int(self.usage.get("prompt_tokens") or 0)

    @property
    def cached_tokens(self) -> int:
        return int((self.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.start_s

    @property
    def e2e_s(self) -> float | None:
        return None if self.end_s is None else self.end_s - self.start_s

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds of a token after the first."""
        if self.first_s is None or self.last_s is None or self.output_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.output_tokens - 1)

    def piece(self, now: float) -> None:
        """A piece of text arrived."""
        self.pieces += 1
        if self.last_s is None:
            self.first_s = now
        else:
            self.gaps_s.append(now - self.last_s)
        self.last_s = now


async def send(session: aiohttp.ClientSession, target: Target, ask: Ask, due_s: float | None = None) -> Timing:
    """Asks and reads to the end; what goes wrong stands in the timing."""
    timing = Timing(start_s=time.perf_counter() if due_s is None else due_s)
    url = target.url + target.path
    try:
        async with session.post(url, json=target.body(ask), headers=target.headers) as response:
            if response.status != 200:
                timing.error = f"HTTP {response.status}: {(await response.text())[:200]}"
            else:
                async for line in response.content:
                    read_event(line, timing)
                if timing.error is None and not timing.is_complete:
                    timing.error, timing.is_cut_off = f"the stream broke off after {timing.pieces} pieces", True
    except (aiohttp.ClientError, OSError) as error:
        # TimeoutError is an OSError.
        timing.error, timing.is_cut_off = (str(error) or repr(error))[:200], True
    except ValueError as error:
        timing.error = f"not an event: {error}"[:200]
    timing.end_s = time.perf_counter()
    return timing


def read_event(line: bytes, timing: Timing) -> None:
    """Takes one line of a stream."""
    if not line.startswith(b"data:"):
        return
    if line.startswith(b"data: [DONE]"):
        timing.is_complete = True
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
        timing.is_complete |= choice.get("finish_reason") is not None


async def answers(url: str) -> bool:
    """Whether anything listens there."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(_PROBE_S):
            _, writer = await asyncio.open_connection(parts.hostname, port)
    except OSError:
        return False
    writer.close()
    return True
