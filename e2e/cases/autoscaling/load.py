"""Clients that ask one question after another until told to stop; bounded in number and time."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

import openai

_LIMIT_S = 600


@dataclass(slots=True)
class Load:
    """A load of `num_clients` on one model; a context manager that ends it."""

    gateway_url: str
    model: str
    num_clients: int
    errors: list[str] = field(default_factory=list)
    num_answers: int = 0
    _wanted: int = 0
    _threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Load:
        self._wanted = self.num_clients
        deadline = time.monotonic() + _LIMIT_S
        for number in range(self.num_clients):
            thread = threading.Thread(target=self._ask_repeatedly, args=(number, deadline))
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.keep_only(0)

    def keep_only(self, num_clients: int) -> None:
        """Let the others finish their request and end."""
        self._wanted = num_clients
        for thread in self._threads[num_clients:]:
            thread.join()

    def _ask_repeatedly(self, number: int, deadline: float) -> None:
        # No retries of the client's own: a failed request must be seen.
        with openai.OpenAI(base_url=f"{self.gateway_url}/v1", api_key="none", max_retries=0, timeout=240) as client:
            while number < self._wanted and time.monotonic() < deadline:
                message = {"role": "user", "content": f"Client {number}: tell a story about the number {number}."}
                try:
                    client.chat.completions.create(model=self.model, messages=[message], max_tokens=32)
                except openai.OpenAIError as error:
                    with self._lock:
                        self.errors.append(f"client {number}: {error!r}")
                    time.sleep(1)
                else:
                    with self._lock:
                        self.num_answers += 1
