"""Streams that never pause: each client begins the next answer when one has ended, and checks every token of it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

import openai

_LIMIT_S = 280
_MAX_TOKENS = 32


@dataclass(slots=True)
class Streams:
    """`num_clients` streams on one model at all times; a context manager that lets the last ones finish."""

    gateway_url: str
    model: str
    num_clients: int
    problems: list[str] = field(default_factory=list)
    num_answers: int = 0
    longest_s: float = 0.0
    """From request to end, of the answer that took longest: what a rollout costs a client."""
    _is_over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _expected: dict[int, str] = field(default_factory=dict)

    def __enter__(self) -> Streams:
        deadline = time.monotonic() + _LIMIT_S
        for number in range(self.num_clients):
            thread = threading.Thread(target=self._stream_on, args=(number, deadline))
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _stream_on(self, number: int, deadline: float) -> None:
        # No retries of the client's own: a failed request must be seen.
        with openai.OpenAI(base_url=f"{self.gateway_url}/v1", api_key="none", max_retries=0, timeout=200) as client:
            while not self._is_over.is_set() and time.monotonic() < deadline:
                began = time.monotonic()
                try:
                    problem = self._stream(client, number)
                except openai.OpenAIError as error:
                    problem = repr(error)
                with self._lock:
                    self.num_answers += 1
                    self.longest_s = max(self.longest_s, time.monotonic() - began)
                    if problem:
                        self.problems.append(f"client {number}, answer {self.num_answers}: {problem}")

    def _stream(self, client: openai.OpenAI, number: int) -> str:
        """What is wrong with one answer; "" where every token came once and in order."""
        chunks = list(
            client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": f"Tell a long story about {number} foxes."}],
                max_tokens=_MAX_TOKENS,
                temperature=0,
                logprobs=True,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
        text = "".join(choice.delta.content or "" for choice in choices)
        tokens = [token.token for choice in choices if choice.logprobs for token in choice.logprobs.content or ()]
        usage = chunks[-1].usage
        if usage is None or not any(choice.finish_reason for choice in choices):
            return f"it broke off after {len(tokens)} tokens: {text!r}"
        # The token that ends an answer counts, and has no text.
        num_ends = sum(choice.finish_reason == "stop" for choice in choices)
        if len(tokens) + num_ends != usage.completion_tokens:
            return f"{len(tokens)} tokens came, usage says {usage.completion_tokens}: {text!r}"
        expected = self._expected.setdefault(number, text)
        return "" if text == expected else f"{text!r} is not what it was before: {expected!r}"
