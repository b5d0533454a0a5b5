"""Responses that clients may ask for again: bounded by count, bytes and age; the oldest go first. Nothing outlives the
process, and nobody learns an id but from its answer.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

    from octavo_server.api.messages import Message


@dataclass(slots=True, kw_only=True)
class StoredResponse:
    """One response and what it takes to go on from it."""

    response: dict[str, Any]
    """The object as it is now; while it is in progress its writer changes it."""
    input_items: Sequence[Mapping[str, Any]]
    """What this response was asked with, as `/input_items` lists it."""
    messages: tuple[Message, ...] = ()
    """The whole conversation up to and including its answer, without instructions."""
    task: asyncio.Task[None] | None = None
    """What works on it, where it runs in the background."""
    stored_s: float = 0.0
    num_bytes: int = 0

    @property
    def is_running(self) -> bool:
        return self.task is not None and not self.task.done()


class ResponseStore:
    """Owns what is stored. What runs in the background is never dropped, but counts."""

    def __init__(self, *, max_responses: int, max_bytes: int, max_age_s: float, clock: Callable[[], float]) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def num_bytes(self) -> int:
        """Bytes of JSON that the stored ones are counted as."""
        return self._num_bytes

    def put(self, stored: StoredResponse) -> None:
        """Adds a response, or takes in that it has changed; drops what has become too much or too old."""
        name = stored.response["id"]
        self.remove(name)
        stored.stored_s, stored.num_bytes = self._clock(), _size(stored)
        self._stored[name] = stored
        self._num_bytes += stored.num_bytes
        self._drop()

    def get(self, name: str) -> StoredResponse | None:
        """The response of that id; None where there is none, or no longer."""
        self._drop()
        return self._stored.get(name)

    def remove(self, name: str) -> bool:
        """Forgets a response; False where there is none."""
        stored = self._stored.pop(name, None)
        if stored is None:
            return False
        self._num_bytes -= stored.num_bytes
        return True

    def running(self) -> list[StoredResponse]:
        """Those that are worked on in the background."""
        return [stored for stored in self._stored.values() if stored.is_running]

    def find_item(self, item_id: str) -> Mapping[str, Any] | None:
        """An output or input item of any stored response, the newest first."""
        for stored in reversed(self._stored.values()):
            for item in (*stored.response["output"], *stored.input_items):
                if item.get("id") == item_id:
                    found: Mapping[str, Any] = item
                    return found
        return None

    def _drop(self) -> None:
        oldest = self._clock() - self._max_age_s
        for name, stored in list(self._stored.items()):
            is_over = len(self._stored) > self._max_responses or self._num_bytes > self._max_bytes
            if not is_over and stored.stored_s >= oldest:
                return
            if not stored.is_running:
                self.remove(name)


def routing_digests(routing_tag: str) -> str:
    """`NAMESPACE/NAME/POD` as it ends an id: ten hexadecimal digits for the deployment, ten for the pod."""
    deployment, _, pod = routing_tag.rpartition("/")
    return "".join(hashlib.blake2b(part.encode(), digest_size=5).hexdigest() for part in (deployment, pod))


def _size(stored: StoredResponse) -> int:
    """Bytes of the JSON of what is kept, which its objects take several times of, but in proportion."""
    return len(json.dumps([stored.response, stored.input_items, stored.messages], default=str))
