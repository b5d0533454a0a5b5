"""Who is admitted next: one queue per policy, the same five operations.

A queue holds WAITING and PREEMPTED sequences. `peek` may say another sequence after any change of queue or cache;
nobody waits for ever: fcfs and priority follow a fixed order, cache-aware bounds how often its oldest is overtaken.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterator
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from octavo_server.engine.outputs import SequenceId
    from octavo_server.engine.sequence import Sequence


class SchedulingPolicy(StrEnum):
    """Order of the waiting queue."""

    FCFS = "fcfs"
    PRIORITY = "priority"
    CACHE_AWARE = "cache-aware"


class WaitingQueue(Protocol):
    """What the Scheduler asks of a queue."""

    def push(self, sequence: Sequence) -> None:
        """Adds a new sequence."""

    def push_front(self, sequence: Sequence) -> None:
        """Adds a preempted sequence, ahead of everything that the policy does not rank higher."""

    def peek(self) -> Sequence:
        """The next to admit; the queue must not be empty."""

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, admitted or aborted."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sequence]: ...


class FCFSQueue:
    """First come, first served. Every operation is O(1)."""

    def __init__(self) -> None:
        # A linked list: a dict would scan over deleted entries at its front
        self._sequences: OrderedDict[SequenceId, Sequence] = OrderedDict()

    def push(self, sequence: Sequence) -> None:
        self._sequences[sequence.sequence_id] = sequence

    def push_front(self, sequence: Sequence) -> None:
        self._sequences[sequence.sequence_id] = sequence
        self._sequences.move_to_end(sequence.sequence_id, last=False)

    def peek(self) -> Sequence:
        return next(iter(self._sequences.values()))

    def remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.sequence_id]

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences.values())


class PriorityQueue:
    """Lowest `priority` first, then by arrival; a preempted sequence returns to the place that its arrival gives it."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []

    def push(self, sequence: Sequence) -> None:
        insort(self._sequences, sequence, key=priority_key)

    def push_front(self, sequence: Sequence) -> None:
        self.push(sequence)

    def peek(self) -> Sequence:
        return self._sequences[0]

    def remove(self, sequence: Sequence) -> None:
        # The key ends with the id, so the place found is the sequence's own
        del self._sequences[bisect_left(self._sequences, priority_key(sequence), key=priority_key)]

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)


class CacheAwareQueue(FCFSQueue):
    """Longest prefix hit among the oldest first, so that a hot prefix is used before it is evicted."""

    WINDOW = 32
    """Oldest sequences that compete; bounds the cost of `peek`."""
    MAX_OVERTAKES = 32
    """Admissions that may pass the oldest sequence before it is next whatever it hits."""

    def __init__(self, num_hit_blocks: Callable[[Sequence], int]) -> None:
        super().__init__()
        self._num_hit_blocks = num_hit_blocks
        self._overtakes = 0

    def peek(self) -> Sequence:
        if self._overtakes >= self.MAX_OVERTAKES:
            return super().peek()
        # max() keeps the first of equals: the oldest
        return max(islice(self, self.WINDOW), key=self._num_hit_blocks)

    def remove(self, sequence: Sequence) -> None:
        self._overtakes = 0 if sequence is super().peek() else self._overtakes + 1
        super().remove(sequence)


def priority_key(sequence: Sequence) -> tuple[int, float, int]:
    """Orders sequences by priority, arrival, id; the greatest is the least urgent."""
    return (sequence.request.priority, sequence.arrival_s, sequence.sequence_id)


def make_waiting_queue(policy: SchedulingPolicy, num_hit_blocks: Callable[[Sequence], int]) -> WaitingQueue:
    """The queue of a policy."""
    if policy is SchedulingPolicy.PRIORITY:
        return PriorityQueue()
    return CacheAwareQueue(num_hit_blocks) if policy is SchedulingPolicy.CACHE_AWARE else FCFSQueue()
